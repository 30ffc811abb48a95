"""The gate's effect: a request's own slot changes nothing, another's does, and no text leaks from one to the other."""

from __future__ import annotations

import pytest
import torch

from safealign.evaluation.gate_effect import gate_effect, opening_logits
from safealign.layout import Span, build_layout, request_row
from safealign.layout.collate import collate_layouts
from safealign.layout.spans import Rendered
from safealign.modeling.features import plan_for


def _rendered(kit, model, label: str, at: int) -> Rendered:
    return model.renderer.render(kit.prompts(at + 1, label)[at].prompt)


def _ordinary(model, text: Rendered, *, gate: bool = True) -> torch.Tensor:
    batch = collate_layouts([build_layout(text, [request_row(text)], gate=gate)])
    with torch.no_grad(), model.parts.armed(plan_for(batch)):
        return model.parts.lm(input_ids=torch.tensor([text.input_ids]), use_cache=False).logits[0, -1]


def test_with_its_own_slot_a_request_opens_as_it_always_does(kit, ours) -> None:
    text = _rendered(kit, ours, "benign", 1)
    torch.testing.assert_close(opening_logits(ours.parts, text, text), _ordinary(ours, text), atol=1e-6, rtol=1e-5)


def test_another_slot_changes_the_opening_and_nothing_else_of_it_leaks(kit, ours) -> None:
    text, other = _rendered(kit, ours, "benign", 1), _rendered(kit, ours, "malicious", 2)
    own, swapped = opening_logits(ours.parts, text, text), opening_logits(ours.parts, text, other)
    assert (own - swapped).abs().max() > 1e-5
    # What the safety row does not read of the other prompt has no way to the answer.
    blind = Rendered(other.input_ids, other.query_end, (Span(0, 0),), other.response)
    changed = Rendered((*other.input_ids[:-1], other.input_ids[-2]), other.query_end, (Span(0, 0),), other.response)
    found = [opening_logits(ours.parts, text, slot) for slot in (blind, changed)]
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-5)


def test_the_effect_counts_both_requests_of_each_pair(kit, ours) -> None:
    effect = gate_effect(ours, kit.prompts(3, "malicious"), kit.prompts(4))
    assert effect.n == 6


def test_a_model_without_a_gate_is_refused(kit, undefended) -> None:
    with pytest.raises(ValueError, match="no gate"):
        gate_effect(undefended, kit.prompts(1, "malicious"), kit.prompts(1))
