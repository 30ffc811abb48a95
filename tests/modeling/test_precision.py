"""Weights in another number format for a while, and back to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from safealign.modeling.exporting import merged
from safealign.modeling.precision import weights_as


def dtypes(model: Any, safety: bool) -> set[torch.dtype]:
    return {p.dtype for name, p in model.named_parameters() if ("safety_" in name) == safety}


@pytest.mark.parametrize("adapter", [False, True])
def test_weights_change_format_and_come_back_to_the_bit(build, adapter: bool) -> None:
    built = build(adapter=adapter)
    before = {name: value.clone() for name, value in built.lm.state_dict().items()}
    logits, verdicts = built.outputs()
    with merged(built.lm), weights_as(built.lm, torch.bfloat16):
        assert dtypes(built.lm, safety=False) == {torch.bfloat16}
        assert dtypes(built.lm, safety=True) == {torch.float32}
        rough_logits, rough = built.outputs()
    assert not torch.equal(rough_logits.float(), logits)
    torch.testing.assert_close(rough, verdicts, atol=0.3, rtol=0.1)
    assert all(torch.equal(value, before[name]) for name, value in built.lm.state_dict().items())
    assert torch.equal(built.outputs()[0], logits)


def test_an_error_inside_puts_the_weights_back(build) -> None:
    built = build()
    with pytest.raises(RuntimeError, match="on purpose"), weights_as(built.lm, torch.bfloat16):
        raise RuntimeError("on purpose")
    assert dtypes(built.lm, safety=False) == {torch.float32}
