"""Recomputing activations in the backward pass changes no gradient: the masks of both layer types come back as well."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safealign.training.safety_loss import SafetyObjective


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3"])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_gradients_are_the_same(kit, tmp_path: Path, architecture: str, adapter: bool) -> None:
    examples = kit.examples(kit.every_pairing())
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        trainer = kit.safe_trainer(
            tmp_path,
            examples,
            SafetyObjective(1.0),
            architecture=architecture,
            peft=kit.lora() if adapter else None,
            max_steps=1,
            gradient_checkpointing=checkpointing,
        )
        found.append(kit.run(trainer))
    plain, again = found
    assert plain.losses == pytest.approx(again.losses, abs=1e-5)
    assert plain.gradients[0].keys() == again.gradients[0].keys()
    for name, gradient in plain.gradients[0].items():
        torch.testing.assert_close(again.gradients[0][name], gradient, atol=1e-5, rtol=1e-4)
    assert any("safety_token" in name for name in plain.gradients[0])
