"""Gate closed and λ = 0: loss, gradients and weights are those of TRL's own trainer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from safealign.training.safety_loss import SafetyObjective

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
OFF = SafetyObjective(lambda_cls=0.0)


def _same(plain: Any, safe: Any) -> None:
    assert safe.losses == pytest.approx(plain.losses, abs=1e-5)
    for expected, found in zip(plain.gradients, safe.gradients, strict=True):
        assert expected.keys() == {name for name in found if "safety" not in name}
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, **CLOSE, msg=lambda text, n=name: f"{n}: {text}")
    for name, weight in plain.weights.items():
        torch.testing.assert_close(safe.weights[name], weight, **CLOSE)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_full_training_equals_trl(kit, both, architecture: str) -> None:
    examples = kit.examples(kit.every_pairing(), gate_closed_share=1.0)
    plain, safe = both(examples, OFF, architecture=architecture)
    assert len(plain.losses) == 3 and plain.gradients[0]["model.norm.weight"].any()
    _same(plain, safe)
    assert not any(grad.any() for name, grad in safe.gradients[0].items() if "safety" in name)


@pytest.mark.parametrize(
    "how",
    [{"gradient_accumulation_steps": 2}, {"gradient_checkpointing": True}],
    ids=["accumulated", "checkpointed"],
)
def test_an_adapter_equals_trls(kit, both, how: dict[str, Any]) -> None:
    examples = kit.examples(kit.every_pairing(), gate_closed_share=1.0)
    plain, safe = both(examples, OFF, peft=kit.lora, **how)
    assert any("lora_B" in name and grad.any() for name, grad in plain.gradients[0].items())
    _same(plain, safe)


def test_an_open_gate_is_something_else(kit, both) -> None:
    """The comparison above can fail: with the slot in sight the loss differs."""
    plain, safe = both(kit.examples(kit.every_pairing(), gate_closed_share=0.0), OFF, max_steps=1)
    assert safe.losses[0] != pytest.approx(plain.losses[0], abs=1e-4)


def test_lambda_zero_with_the_gate_open_trains_the_token_through_the_slot_alone(kit, both) -> None:
    _, safe = both(kit.examples(kit.every_pairing(), gate_closed_share=0.0), OFF, max_steps=1)
    gradients = safe.gradients[0]
    assert gradients["safety_token.weight"].any()
    assert not gradients["safety_head.linear.weight"].any()
