"""Pooled states against their definition, and batches that change nothing but the speed."""

from __future__ import annotations

import pytest
import torch

from safealign.data.rendering import Renderer
from safealign.layout import build_layout, refresh_row, request_row, window_row
from safealign.layout.collate import collate_layouts
from safealign.modeling.attach import attach
from safealign.modeling.features import (
    batch_logits,
    layout_features,
    layout_logits,
    plan_for,
    pool_states,
)
from safealign.modeling.safety_token import HeadSettings
from safealign.modeling.texts import pad_ids
from safealign.modeling.tiny import tiny_model, tiny_tokenizer

QUESTIONS = ("Why?", "Tell me about the ocean", "Name a tree and a bird.")


@pytest.fixture
def texts(build):
    built = build()
    renderer = Renderer(built.tokenizer)
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": q + " I see"}] for q in QUESTIONS]
    return built, [renderer.render(turn) for turn in turns]


def _layout(text):
    start, end = text.response
    return build_layout(text, [request_row(text), window_row(text, start + 1, end), refresh_row(text, 2)])


def test_pools_are_row_span_mean_and_last_row_of_the_span(texts) -> None:
    built, rendered = texts
    text = rendered[1]
    batch = collate_layouts([_layout(text)])
    with torch.no_grad(), built.parts.armed(plan_for(batch)) as capture:
        built.lm(input_ids=torch.tensor([text.input_ids]), use_cache=False)
    pooled, states = pool_states(capture, batch), capture.states[0]
    start, end = text.response
    content = list(range(*text.content[0]))
    spans = [content, list(range(start + 1, end)), [*content, start, start + 1]]
    for index, rows in enumerate(spans):
        torch.testing.assert_close(pooled.row[0, index], states[len(text.input_ids) + index])
        torch.testing.assert_close(pooled.mean[0, index], states[rows].mean(dim=0))
        torch.testing.assert_close(pooled.last[0, index], states[rows[-1]])


def test_batches_and_their_order_do_not_matter(texts) -> None:
    built, rendered = texts
    layouts, ids = [_layout(text) for text in rendered], [text.input_ids for text in rendered]
    one_by_one = layout_logits(built.parts, ids, layouts, 1)
    for found, expected in zip(layout_logits(built.parts, ids, layouts, 3), one_by_one, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for found, expected in zip(layout_logits(built.parts, ids[::-1], layouts[::-1], 2), one_by_one[::-1], strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_logits_are_the_heads_of_the_features(texts) -> None:
    built, rendered = texts
    layouts, ids = [_layout(text) for text in rendered], [text.input_ids for text in rendered]
    done: list[int] = []
    features = layout_features(built.parts, ids, layouts, 2, done.append)
    logits = layout_logits(built.parts, ids, layouts, 2)
    assert done == [2, 1]
    for found, expected in zip(features, logits, strict=True):
        torch.testing.assert_close(built.parts.head(found), expected)
        assert not expected.requires_grad


def test_a_shallow_head_stops_early_and_says_the_same() -> None:
    """Blocks above the head's deepest one are not run; the model itself is whole again afterwards."""
    lm, renderer = tiny_model(), Renderer(tiny_tokenizer())
    parts = attach(lm, HeadSettings((0.25, 0.5), ("row", "mean", "last")))
    torch.nn.init.normal_(parts.head.linear.weight)
    text = renderer.render([{"role": "user", "content": QUESTIONS[1]}, {"role": "assistant", "content": "It is wide"}])
    ran: list[int] = []
    for depth, layer in enumerate(parts.layers, 1):
        layer.register_forward_hook(lambda *_, depth=depth: ran.append(depth))
    (found,) = layout_logits(parts, [text.input_ids], [_layout(text)])
    assert set(ran) <= {1, 2}
    with torch.no_grad(), parts.armed(plan_for(collate_layouts([_layout(text)]))) as capture:
        logits = lm(input_ids=torch.tensor([text.input_ids]), use_cache=False).logits
    expected = batch_logits(parts, capture, collate_layouts([_layout(text)]))[0]
    assert ran[-4:] == [1, 2, 3, 4] and logits.shape[1] == len(text.input_ids)
    torch.testing.assert_close(found, expected)


def test_ids_are_padded_on_the_right() -> None:
    assert pad_ids([[1, 2, 3], [4]], 9).tolist() == [[1, 2, 3], [4, 9, 9]]
