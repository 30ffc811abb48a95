"""Batch 1 × accumulation 8 = batch 8 × 1, the safety loss and the head's gradients included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from safealign.training.safety_loss import SafetyObjective

OBJECTIVE = SafetyObjective(lambda_cls=0.7, pos_weight=2.0, label_smoothing=0.1)


def _run(kit: Any, folder: Path, batch: int, accumulate: int, **how: Any) -> Any:
    torch.manual_seed(0)
    examples = kit.examples(kit.every_pairing())
    how = {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulate,
        "max_steps": 2,
    } | how
    return kit.run(kit.safe_trainer(folder, examples, OBJECTIVE, **how))


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "adapter"])
def test_accumulated_equals_one_batch(kit, tmp_path: Path, adapter: bool) -> None:
    many, one = (_run(kit, tmp_path, *shape, peft=kit.lora() if adapter else None) for shape in ((1, 8), (8, 1)))
    assert many.losses == pytest.approx(one.losses, abs=2e-5)
    for found, expected in zip(many.gradients, one.gradients, strict=True):
        assert expected["safety_head.linear.weight"].any() and expected["safety_token.weight"].any()
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=2e-5, rtol=1e-4)


def test_a_last_incomplete_step_divides_by_its_own_rows(kit, tmp_path: Path) -> None:
    """Ten examples by eight: the last step's two weigh as a batch of two."""
    many, one = (_run(kit, tmp_path, *shape, max_steps=-1, num_train_epochs=1) for shape in ((1, 8), (8, 1)))
    assert len(one.losses) == 2
    assert many.losses == pytest.approx(one.losses, abs=2e-5)


def test_the_lm_loss_is_logged_as_that_of_the_whole_step(kit, tmp_path: Path) -> None:
    """Micro-batches of one example count their own tokens; the figure does not depend on how a step was cut."""
    many, one = (_run(kit, tmp_path, *shape) for shape in ((1, 8), (8, 1)))
    logged = [[row["lm/loss"] for row in ran.trainer.state.log_history if "lm/loss" in row] for ran in (many, one)]
    assert len(logged[0]) == 2 and logged[0] == pytest.approx(logged[1], abs=2e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_gradient(kit, tmp_path: Path, reentrant: bool) -> None:
    """The head reads inner blocks, which checkpointing computes twice."""
    plain = _run(kit, tmp_path, 4, 1)
    how = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    saving = _run(kit, tmp_path, 4, 1, **how)
    for found, expected in zip(saving.gradients, plain.gradients, strict=True):
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-4)
