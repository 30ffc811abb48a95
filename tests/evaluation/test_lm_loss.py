"""Held-out loss: the same as the model's own, whatever the batch, and blind to a gate that is closed."""

from __future__ import annotations

import pytest
import torch

from safealign.evaluation.lm_loss import answer_losses


def _rendered(model, kit, n: int = 5):
    return [model.renderer.render(record.messages) for record in kit.answered(n)]


def test_it_is_the_mean_over_the_answers_tokens(undefended, kit) -> None:
    rendered = _rendered(undefended, kit, 1)[0]
    ids = torch.tensor([rendered.input_ids])
    labels = ids.clone()
    labels[:, : rendered.response.start] = -100
    with torch.no_grad():
        expected = undefended.hf(input_ids=ids, labels=labels).loss.item()
    assert answer_losses(undefended.hf, None, [rendered])[0] == pytest.approx(expected, abs=1e-5)


def test_neither_batch_nor_order_matters(undefended, ours, kit) -> None:
    for model, parts in ((undefended, None), (ours, ours.parts)):
        rendered = _rendered(model, kit)
        one = answer_losses(model.hf, parts, rendered, batch_size=1)
        many = answer_losses(model.hf, parts, rendered, batch_size=5)
        back = answer_losses(model.hf, parts, rendered[::-1], batch_size=2)
        assert many == pytest.approx(one, abs=1e-5) and back[::-1] == pytest.approx(one, abs=1e-5)


def test_a_closed_gate_is_the_bare_model_and_an_open_one_is_not(ours, kit) -> None:
    rendered = _rendered(ours, kit)
    bare = answer_losses(ours.hf, None, rendered)
    assert answer_losses(ours.hf, ours.parts, rendered, gate=False) == pytest.approx(bare, abs=1e-5)
    assert answer_losses(ours.hf, ours.parts, rendered, gate=True) != pytest.approx(bare, abs=1e-5)


def test_nothing_is_no_loss(undefended) -> None:
    assert answer_losses(undefended.hf, None, []) == []
