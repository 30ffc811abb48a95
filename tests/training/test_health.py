"""Numbers that are not finite stop the run or are left out; a rank that keeps others waiting is named."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from safealign.errors import DivergedError
from safealign.training.callbacks.pulse import Pulse
from safealign.training.safety_loss import SafetyObjective


class Poison(TrainerCallback):
    """Makes one micro-batch's loss or gradient NaN or infinite, at the steps given."""

    def __init__(self, trainer: Any, steps: set[int], value: float, gradient_only: bool) -> None:
        self.trainer, self.steps, self.value, self.gradient_only = trainer, steps, value, gradient_only
        self.real = trainer.compute_loss
        trainer.compute_loss = self._loss

    def _loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = self.real(*args, **kwargs)
        if self.trainer.state.global_step + 1 not in self.steps or not self.trainer.model.training:
            return loss
        if self.gradient_only:
            loss.register_hook(lambda gradient: gradient * self.value)
            return loss
        return loss * self.value


def _trainer(kit: Any, folder: Path, steps: set[int], value: float, gradient_only: bool, **how: Any) -> Any:
    examples = kit.examples(kit.every_pairing())
    options = {"max_steps": 6, "optim": "adamw_torch", "learning_rate": 1e-2, "max_grad_norm": 1.0}
    trainer = kit.safe_trainer(folder, examples, SafetyObjective(1.0), peft=kit.lora(), **(options | how))
    trainer.run_dir, trainer.example_ids = folder, {i: f"mine#{i}" for i in range(len(examples))}
    Poison(trainer, steps, value, gradient_only)
    return trainer


def _weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("gradient_only", [False, True])
def test_a_step_that_is_not_finite_stops_the_run_with_the_weights_before_it(
    kit: Any, tmp_path: Path, value: float, gradient_only: bool
) -> None:
    trainer = _trainer(kit, tmp_path, {3}, value, gradient_only)
    seen: list[dict[str, torch.Tensor]] = []

    class Keep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(_weights(trainer))

    trainer.add_callback(Keep())
    with pytest.raises(DivergedError, match=r"step 3.*(loss|gradient) is NaN.*nonfinite.jsonl"):
        trainer.train()
    assert len(seen) == 2
    assert all(torch.equal(value, seen[-1][name]) for name, value in _weights(trainer).items())
    (row,) = [json.loads(line) for line in (tmp_path / "nonfinite.jsonl").read_text(encoding="utf-8").splitlines()]
    assert row["step"] == 3 and row["what"] == ("gradient" if gradient_only else "loss")
    assert 0 < len(row["ids"]) <= 4 and all(id_.startswith("mine#") for id_ in row["ids"])
    assert set(row) == {"step", "rank", "what", "ids"}


def test_skipping_leaves_the_step_out_and_counts_it(kit: Any, tmp_path: Path) -> None:
    trainer = _trainer(kit, tmp_path, {2, 4}, float("nan"), False, gradient_accumulation_steps=2)
    trainer.on_nonfinite = "skip"
    before: dict[int, dict[str, torch.Tensor]] = {}

    class Keep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            before[state.global_step] = _weights(trainer)

    trainer.add_callback(Keep())
    trainer.train()
    still = [s for s in range(2, 7) if all(torch.equal(v, before[s - 1][n]) for n, v in before[s].items())]
    assert still == [2, 4] and trainer.skipped_steps == 2
    assert all(torch.isfinite(value).all() for value in _weights(trainer).values())
    assert [row for row in trainer.state.log_history if row.get("skipped_steps") == 2]


def test_skipping_gives_up_where_every_step_is_broken(kit: Any, tmp_path: Path) -> None:
    trainer = _trainer(kit, tmp_path, set(range(1, 100)), float("nan"), False, max_steps=30)
    trainer.on_nonfinite = "skip"
    with pytest.raises(DivergedError, match="10 steps in a row"):
        trainer.train()


def test_speed_and_memory_stand_beside_the_loss(kit: Any, tmp_path: Path) -> None:
    trainer = _trainer(kit, tmp_path, set(), 1.0, False, logging_steps=2)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 3
    assert all(row["tokens_per_second"] > 0 and row["memory_gb"] > 0.01 for row in rows)


def _state(step: int) -> Any:
    return SimpleNamespace(global_step=step)


def _sign(folder: Path, rank: int, **changes: Any) -> None:
    sign = {"step": 4, "time": time.time(), "where": "loop.py:7 fetch", "waiting": True} | changes
    (folder / f"rank-{rank}.json").write_text(json.dumps(sign), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"waiting": False}, "rank 2 is in loop.py:7 fetch, at step 4"),
        ({"time": 0.0}, "rank 2 gave no sign of life"),
    ],
)
def test_the_rank_that_keeps_the_others_waiting_is_named(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    said: list[str] = []
    pulse = Pulse(tmp_path, timeout=60.0, say=said.append, apart=1.0)
    for rank in range(4):
        _sign(tmp_path, rank, **(changes if rank == 2 else {}))
    report = pulse._report(4, 61.0)
    assert named in report and "rank 1" not in report and "no step ended for 61 s" in report


def test_a_stall_is_reported_once_and_not_after_the_end(tmp_path: Path) -> None:
    said: list[str] = []
    pulse = Pulse(tmp_path, timeout=0.2, say=said.append, apart=0.02)
    args = SimpleNamespace(process_index=0, world_size=1)
    pulse.on_train_begin(args, _state(0), None)
    for step in range(5):
        time.sleep(0.04)
        pulse.on_step_end(args, _state(step), None)
    assert said == []
    time.sleep(0.6)
    assert len(said) == 1 and "no step ended" in said[0]
    pulse.on_train_end(args, _state(5), None)
    time.sleep(0.3)
    assert len(said) == 1 and os.listdir(tmp_path) == []
