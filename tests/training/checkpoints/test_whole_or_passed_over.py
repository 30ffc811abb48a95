"""What is half-written, damaged or foreign is passed over, and says so; no damage of a single byte goes unnoticed."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safealign.errors import CheckpointError
from safealign.modeling.manifest import publish, write_manifest
from safealign.training.checkpoints.finding import find, to_export
from safealign.training.checkpoints.store import Keeping, named, prune, whole


@pytest.fixture(scope="module")
def written(kit: Any, tmp_path_factory: pytest.TempPathFactory, make_job: Any) -> Path:
    """A checkpoint as a run writes it."""
    job = make_job(kit, tmp_path_factory.mktemp("written"))
    job.run()
    return job.folder / "checkpoints" / "step-7"


def test_a_checkpoint_holds_everything_and_no_code(written: Path) -> None:
    names = {path.name for path in written.iterdir()}
    assert {"adapter_model.safetensors", "safety.safetensors", "safety.json", "checkpoint.json"} <= names
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "manifest.json"} <= names
    for path in (*written.glob("*.pt"), *written.glob("*.bin")):
        read = torch.load
        read(path, weights_only=True)
    assert not (written / "training_args.bin").exists()
    note = json.loads((written / "checkpoint.json").read_text(encoding="utf-8"))
    assert note["identity"]["data"] == "data" and note["epoch"] == pytest.approx(1.4) and note["stage_done"]


@settings(max_examples=60)
@given(data=st.data())
def test_any_changed_byte_and_any_lost_end_is_noticed(written: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(p for p in written.rglob("*") if p.is_file())))
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        changed = bytearray(content)
        changed[place] ^= data.draw(st.integers(1, 255))
        changed = bytes(changed)
    else:
        changed = content[:place]
    try:
        path.write_bytes(changed)
        with pytest.raises(CheckpointError):
            whole(written)
    finally:
        path.write_bytes(content)
    assert whole(written).step == 7


def test_the_bytes_of_the_manifest_count_blanks_included(written: Path) -> None:
    path = written / "manifest.json"
    content = path.read_bytes()
    try:
        for place in range(0, len(content), 5):
            for other in (b" ", b"\t", b"\r", b"0", b"A"):
                if content[place : place + 1] != other:
                    path.write_bytes(content[:place] + other + content[place + 1 :])
                    with pytest.raises(CheckpointError):
                        whole(written)
                    break
    finally:
        path.write_bytes(content)


def _folder(written: Path, tmp_path: Path, *steps: int) -> Path:
    folder = tmp_path / "checkpoints"
    for step in steps:
        shutil.copytree(written, folder / f"step-{step}")
    return folder


def _rewrite(path: Path, **changes: Any) -> None:
    note = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
    for key, value in changes.items():
        target = note["identity"] if key in note["identity"] else note
        target[key] = value
    (path / "checkpoint.json").write_text(json.dumps(note), encoding="utf-8")
    write_manifest(path)


def test_the_newest_whole_one_of_this_run_is_found_and_others_say_why_not(
    written: Path, tmp_path: Path, identity: Any
) -> None:
    folder = _folder(written, tmp_path, 1, 2, 3, 4, 5, 6, 7)
    (folder / "step-8.tmp" / "checkpoint-8").mkdir(parents=True)
    (folder / "step-7" / "manifest.json").unlink()
    with (folder / "step-6" / "optimizer.pt").open("r+b") as stream:
        stream.truncate(100)
    _rewrite(folder / "step-5", config={"seed": 1, "trainer.batch_size": 4})
    _rewrite(folder / "step-4", model="another")
    _rewrite(folder / "step-3", data="other")
    (folder / "step-2" / "note.txt").write_text("hello", encoding="utf-8")
    said: list[str] = []
    found = find("auto", folder, identity, said.append)
    assert found is not None and found.path.name == "step-1"
    reasons = {line.split("/")[-1].split(" ")[0]: line.split("skipped: ")[1] for line in said}
    assert reasons == {
        "step-8.tmp": "it was not finished when the run ended",
        "step-7": "manifest.json is missing: it was not finished",
        "step-6": "optimizer.pt was changed or damaged since it was written",
        "step-5": "it was trained under another config: seed (1 there, 0 here)",
        "step-4": "it was trained from another model",
        "step-3": "it was trained on other data",
        "step-2": "note.txt does not belong to it",
    }


def test_another_number_of_processes_is_refused_with_the_way_out(written: Path, tmp_path: Path, identity: Any) -> None:
    folder = _folder(written, tmp_path, 7)
    with pytest.raises(CheckpointError, match=r"by 1 process.*this run has 2.*export run=.* checkpoint=step-7"):
        find("auto", folder, replace(identity, world=2), print)


def test_a_later_stage_leans_on_the_end_of_the_one_before(written: Path, tmp_path: Path, identity: Any) -> None:
    folder = _folder(written, tmp_path, 4, 7)
    _rewrite(folder / "step-7", base=4, stage="dpo")
    assert find("auto", folder, identity, print).step == 7  # type: ignore[union-attr]
    (folder / "step-4" / "safety.json").unlink()
    said: list[str] = []
    assert find("auto", folder, identity, said.append) is None
    assert "started from step-4, which is of no use: safety.json is missing" in said[0]


def test_one_that_was_being_replaced_when_the_run_died_is_found_as_it_was(
    written: Path, tmp_path: Path, identity: Any
) -> None:
    folder = _folder(written, tmp_path, 7)
    os.replace(folder / "step-7", folder / "step-7.old")
    found = find("auto", folder, identity, print)
    assert found is not None and (found.step, found.path.name) == (7, "step-7.old")


def test_publishing_over_another_keeps_one_of_them_at_any_instant(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, identity: Any
) -> None:
    """It dies after each of its renames in turn."""
    for fatal in (1, 2):
        folder = _folder(written, tmp_path / str(fatal), 7)
        shutil.copytree(written, folder / "new")
        calls = []

        def dying(source: Any, target: Any, real: Any = os.replace, fatal: int = fatal, calls: list = calls) -> None:
            calls.append(1)
            if len(calls) > fatal:
                raise KeyboardInterrupt
            real(source, target)
            if len(calls) == fatal:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("safealign.modeling.manifest.os.replace", dying)
            publish(folder / "new", folder / "step-7")
        found = find("auto", folder, identity, print)
        assert found is not None and found.step == 7


def test_the_newest_the_best_and_the_ends_of_stages_are_kept(written: Path, tmp_path: Path) -> None:
    folder = _folder(written, tmp_path, 1, 2, 3, 4, 5, 6)
    for step in range(1, 7):
        value = {1: 0.5, 2: 0.9, 3: 0.7}.get(step)
        metrics = {} if value is None else {"eval_safety/request/auroc": value}
        base = {"base": 3} if step > 3 else {}
        _rewrite(folder / f"step-{step}", metrics=metrics, stage_done=step == 3, needed_later=step == 3, **base)
    prune(folder, Keeping(2, "safety/auroc"))
    assert list(named(folder)) == [2, 3, 5, 6]


def test_export_takes_the_newest_whole_one_or_the_one_that_is_named(written: Path, tmp_path: Path) -> None:
    folder = _folder(written, tmp_path, 5, 6, 7)
    (folder / "step-7" / "safety.json").write_text("{}", encoding="utf-8")
    assert to_export(tmp_path, None).name == "step-6"
    assert to_export(tmp_path, "step-5") == to_export(tmp_path, "5") == folder / "step-5"
    with pytest.raises(CheckpointError, match="no checkpoint step-4: there are step-5, step-6, step-7"):
        to_export(tmp_path, "step-4")
    with pytest.raises(CheckpointError, match="step-7 cannot be exported: safety.json was changed"):
        to_export(tmp_path, "step-7")
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        to_export(tmp_path / "elsewhere", None)


class _Payload:
    """Would run on loading, if anything ran."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_file_that_would_run_code_is_not_loaded(job: Any, tmp_path: Path, name: str) -> None:
    first = job()
    first.killed_after(5)
    checkpoint = first.folder / "checkpoints" / "step-4"
    torch.save({"state": _Payload(tmp_path / "ran")}, checkpoint / name)
    write_manifest(checkpoint)
    with pytest.raises(CheckpointError, match="something else than tensors"):
        first.run()
    assert not (tmp_path / "ran").exists()
