"""A run under ZeRO that dies goes on as if it had not; in another number of processes or stage it is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]


@pytest.mark.parametrize(("stage", "rank"), [("zero1", 0), ("zero2", 1), ("zero3", 1)])
def test_a_killed_run_goes_on_as_if_it_was_not(
    finished: Callable[..., Any], start: Callable[..., Any], tmp_path: Path, stage: str, rank: int
) -> None:
    statuses, _ = start(tmp_path / "job", stage, die={rank: 3})
    assert statuses[rank] == -9 and statuses[1 - rank] != 0
    statuses, again = start(tmp_path / "job", stage)
    assert statuses == [0, 0], again.log()[-3000:]
    undisturbed = finished(stage)
    assert len(again.rows(0)) == 3 + 5  # three steps, and five more from the checkpoint at step 2
    for name in ("loss", "safety/loss", "grad_norm"):
        assert again.curve(name) == pytest.approx(undisturbed.curve(name), abs=1e-6), name
    ours, theirs = again.weights(), undisturbed.weights()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        (("zero2", 2), ("zero3", 2), "written with deepspeed.name=zero2, and this run has deepspeed.name=zero3"),
        (("zero3", 2), ("zero2", 2), "written with deepspeed.name=zero3, and this run has deepspeed.name=zero2"),
        (("zero2", 2), ("none", 2), "written with deepspeed.name=zero2, and this run has deepspeed.name=none"),
        (("none", 2), ("zero2", 2), "written with deepspeed.name=none, and this run has deepspeed.name=zero2"),
        (("zero2", 2), ("zero2", 1), "written by 2 process(es), and this run has 1"),
        (("none", 1), ("zero2", 2), "written by 1 process(es), and this run has 2"),
    ],
)
def test_another_split_is_refused_with_the_way_out(
    finished: Callable[..., Any],
    start: Callable[..., Any],
    first: tuple[str, int],
    then: tuple[str, int],
    said: str,
) -> None:
    before = finished(*first)
    checkpoints = sorted(path.name for path in (before.folder / "checkpoints").iterdir())
    statuses, refused = start(before.folder, *then)
    assert statuses == [2] * then[1]
    text = " ".join(refused.log().split())
    assert said in text and "resume=none" in text and "python -m safealign.export run=" in text
    assert sorted(path.name for path in (before.folder / "checkpoints").iterdir()) == checkpoints
