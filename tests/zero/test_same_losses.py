"""Two ranks under any ZeRO stage train as one process without DeepSpeed does at the same whole batch.

Held to 1e-5 (of the value, where that is above 1): in fp32 the same numbers are summed in another order, and the steps
carry that on. The jobs are those of `tests/end_to_end/test_same_losses.py`: an epoch ends in a batch that leaves the
second rank nothing, and ranks, or whole steps, have no safety row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from curves import DPO, LOSSES, SFT, curve

from safealign.config import compose

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]
N = 17
WAYS = [("zero1", 1), ("zero2", 1), ("zero2", 2), ("zero3", 1)]  # stage, gradient accumulation


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One process at a time, without DeepSpeed."""
    return {kind: curve(tmp_path_factory.mktemp(kind) / "job", kind, n=N, adapter=True) for kind in (SFT, DPO)}


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(("stage", "accumulation"), WAYS)
@pytest.mark.parametrize("kind", [SFT, DPO])
def test_losses_and_gradient_norms_are_those_of_one_process(
    alone: dict[str, Any], tmp_path: Any, kind: str, stage: str, accumulation: int
) -> None:
    how = {"ranks": 2, "batch": 2 // accumulation, "accumulation": accumulation, "n": N, "adapter": True}
    shared = curve(tmp_path / "job", kind, deepspeed=compose([f"deepspeed={stage}"]).deepspeed.config, **how)
    assert shared.engine == "DEEPSPEED"
    assert len(shared.rows) == len(alone[kind].rows) == 10
    for name in (*LOSSES, {SFT: "lm/loss", DPO: "dpo/loss"}[kind]):
        assert shared.of(name) == pytest.approx(alone[kind].of(name), rel=1e-5, abs=1e-5), name
    assert any(not all(step) and any(step) for step in shared.labelled) and [0, 0] in shared.labelled


@pytest.mark.parametrize("stage", ["none", "zero1", "zero2", "zero3", "zero3_offload"])
def test_weights_are_those_of_one_process(finished: Callable[..., Any], stage: str) -> None:
    """With Adam, whose state is what the stages split."""
    alone, shared = finished("none", 1), finished(stage)
    assert shared.curve("loss") == pytest.approx(alone.curve("loss"), rel=1e-5)
    assert shared.rows(0) != alone.rows(0)
    ours, theirs = shared.weights(), alone.weights()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.shape == theirs[name].shape and (value - theirs[name]).abs().max() < 1e-4, name
