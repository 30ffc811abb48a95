"""A run that was interrupted and goes on is the run that was not: the same losses, the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from safealign.errors import CheckpointError
from safealign.modeling.checkpoint import safety_tensors
from safealign.modeling.loading import load_export, weights_digest
from safealign.modeling.tiny import tiny_model, tiny_tokenizer
from safealign.training.checkpoints.store import named


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def assert_same(one: Any, other: Any) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


WAYS = {
    "adapter": {},
    "all weights": {"peft": False},
    "accumulation": {"options": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}},
    "rare logs": {"options": {"logging_steps": 5}},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_curve_after_an_interruption_is_the_uninterrupted_one(job, way: str) -> None:
    whole, broken = job("whole", **WAYS[way]), job("broken", **WAYS[way])
    expected = whole.run()
    broken.killed_after(3)  # within the first epoch of five steps; step 2 is saved
    broken.killed_after(6)  # in the second epoch, after its evaluation; step 4 is saved
    found = broken.run()
    assert found.state.global_step == 7
    assert broken.rows == whole.rows
    assert_same(expected, found)
    assert whole.checkpoints == broken.checkpoints == ["step-7"]


def test_a_checkpoint_at_the_end_of_an_epoch_leads_on_to_the_next_order(job) -> None:
    whole, broken = job("whole", options={"eval_steps": 5}), job("broken", options={"eval_steps": 5})
    broken.config = whole.config = _saving(whole.config, 5)
    expected = whole.run()
    broken.killed_after(6)
    assert_same(expected, broken.run())
    assert broken.rows == whole.rows


def test_a_run_that_is_over_is_not_trained_again(job) -> None:
    once = job()
    expected = once.run()
    before = once.rows
    again = once.run()
    assert_same(expected, again)
    assert again.state.global_step == 7 and once.rows == before


def test_training_anew_sets_aside_what_was_there_and_deletes_nothing(job) -> None:
    once = job()
    once.run()
    once.run(resume="none")
    assert once.checkpoints == ["step-7"]
    assert sorted(path.name for path in (once.folder / "earlier-1").iterdir()) == ["metrics.jsonl", "step-7"]
    assert any("moved to" in line for line in once.said)


def test_a_path_is_gone_on_from_and_a_wrong_one_is_an_error(job) -> None:
    first, second = job("first"), job("second")
    expected = first.run()
    source = first.folder / "checkpoints" / "step-7"
    assert_same(expected, second.run(resume=str(source)))
    with pytest.raises(CheckpointError, match="no such folder"):
        second.run(resume=str(first.folder / "checkpoints" / "step-1"))
    (source / "scheduler.pt").unlink()
    with pytest.raises(CheckpointError, match="scheduler.pt is missing"):
        second.run(resume=str(source))


def test_the_best_checkpoint_stays_beside_the_newest(job) -> None:
    best = job(options={"eval_steps": 1, "learning_rate": 0.3})
    best.config = _keeping(best.config, "loss")
    trainer = best.run()
    losses = {
        row["step"]: row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row and row["step"] > 0
    }
    assert set(named(best.folder / "checkpoints")) == {7, min(losses, key=lambda step: (losses[step], -step))}


def test_a_metric_that_no_evaluation_reports_is_found_before_the_first_step(job) -> None:
    wrong = job()
    wrong.config = _keeping(wrong.config, "safety/acuroc")
    with pytest.raises(Exception, match="no evaluation reports eval_safety/acuroc; there are: .*safety/request/auroc"):
        wrong.run()


def test_what_was_saved_is_what_was_live(job, tmp_path: Path) -> None:
    base = tiny_model(layers=2)
    base.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    once = job(base_name=str(tmp_path / "base"), identity=replace(job().identity, model=weights_digest(base)))
    trainer = once.run()
    loaded = load_export(once.folder / "checkpoints" / "step-7")
    for name, value in safety_tensors(trainer.parts).items():
        assert value.numel() and torch.equal(value, safety_tensors(loaded.parts)[name]), name
    live = {n: v for n, v in trainer.model.state_dict().items() if ".lora_" in n}
    saved = {n: v for n, v in loaded.lm.state_dict().items() if ".lora_" in n}
    assert live.keys() == saved.keys() and all(torch.equal(value, saved[name]) for name, value in live.items())


def _saving(config: Any, steps: int) -> Any:
    return replace(config, trainer=replace(config.trainer, save_steps=steps))


def _keeping(config: Any, metric: str) -> Any:
    return replace(config, trainer=replace(config.trainer, keep_best=metric))
