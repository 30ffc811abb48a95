"""No room left: training ends with one sentence, and the last good checkpoint is as it was."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from dying_jobs import NO_ROOM, fail

from safealign.errors import CheckpointError
from safealign.modeling import checkpoint, exporting
from safealign.training.checkpoints.full_disk import full_disk
from safealign.training.checkpoints.store import whole

TORCH = RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
# One save calls torch.save three times (optimizer, scheduler, random state), save_file twice.
PLACES = {
    "torch": (torch, "save", 4, TORCH),
    "adapter": (exporting, "save_file", 1, NO_ROOM),
    "head": (checkpoint, "save_file", 1, NO_ROOM),
    "fsync": (os, "fsync", 20, NO_ROOM),
    "rename": (os, "replace", 1, NO_ROOM),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_full_disk_stops_training_and_leaves_the_last_checkpoint(
    job: Any, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    module, name, after, error = PLACES[place]
    run, expected = job(), job("whole").run()
    with monkeypatch.context() as patch:
        fail(module, name, after, error, patch.setattr)
        with pytest.raises(CheckpointError) as raised:
            run.run()
    sentence = str(raised.value)
    assert re.search(r"step-4 could not be written \(the disk is (probably )?full\)", sentence)
    assert "run the same command again" in sentence
    assert run.checkpoints == ["step-2"] and "step-2" in sentence
    assert whole(run.folder / "checkpoints" / "step-2").step == 2
    found = run.run()
    for key, value in expected.model.state_dict().items():
        assert torch.equal(value, found.model.state_dict()[key])


def test_a_log_that_cannot_be_written_is_a_full_disk_too(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = job()
    trainer, keeper = run.trainer()
    (log,) = [c for c in trainer.callback_handler.callbacks if type(c).__name__ == "MetricsFile"]
    fail(log, "write", 4, NO_ROOM, monkeypatch.setattr)
    from safealign.training.checkpoints.resuming import train_stage

    with pytest.raises(CheckpointError, match="the disk is full .*some/file"):
        train_stage(trainer, keeper.start_of("sft"), 0)
    assert run.checkpoints == ["step-2"]


def test_what_is_no_full_disk_is_called_by_its_name(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert full_disk(OSError(errno.EIO, "broken")) is None
    assert full_disk(OSError(errno.EDQUOT, "quota")) == "the disk is full"
    fail(torch, "save", 0, PermissionError(errno.EACCES, "not allowed", "x"), monkeypatch.setattr)
    with pytest.raises(CheckpointError, match="PermissionError.*there is no checkpoint yet"):
        job().run()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 180 kB, where a checkpoint takes about 110 and two do not fit."""
    place = tmp_path / "small"
    place.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=180k", "tmpfs", str(place)], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_really_is_full(job: Any, small_disk: Path) -> None:
    run = job("small/job")
    with pytest.raises(CheckpointError, match=r"step-4 could not be written \(the disk is (probably )?full\)"):
        run.run()
    assert run.checkpoints == ["step-2"] and whole(run.folder / "checkpoints" / "step-2").step == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_the_kernels_own_answer_is_understood_from_each_library() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.save({"x": torch.zeros(10_000)}, "/dev/full")
    assert full_disk(raised.value) == "the disk is probably full"
    with pytest.raises(OSError) as refused:
        Path("/dev/full").write_text("x")
    assert full_disk(refused.value) == "the disk is full"
