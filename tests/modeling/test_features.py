"""Pooled states against their definition, and batches that change nothing but the speed."""

from __future__ import annotations

import pytest
import torch

from safealign.data.rendering import Renderer
from safealign.layout import build_layout, refresh_row, request_row, window_row
from safealign.layout.collate import collate_layouts
from safealign.modeling.features import layout_features, layout_logits, pad_ids, plan_for, pool_states

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


def test_ids_are_padded_on_the_right() -> None:
    assert pad_ids([[1, 2, 3], [4]], 9).tolist() == [[1, 2, 3], [4, 9, 9]]
