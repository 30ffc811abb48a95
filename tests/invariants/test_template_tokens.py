"""Rule 4: safety rows give no attention at all to template tokens, and padding is invisible."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from safealign.layout import build_layout, request_row, window_row

EXACT = {"atol": 1e-5, "rtol": 0.0}


def _template_rows(text) -> list[int]:
    content = {row for span in text.content for row in range(span.start, span.end)}
    return [row for row in range(text.response.start) if row not in content]


def test_no_safety_row_gives_weight_to_a_template_token(model, many_rows) -> None:
    text = model.answered()
    rows = many_rows(text)
    layout = build_layout(text, rows)
    for index in range(len(rows)):
        weights = model.attention_of(text, layout, index)
        assert weights[:, text.content[-1].start :].any()
        assert not weights[:, _template_rows(text)].any()


def test_the_content_spans_hold_the_callers_text_and_no_template(model) -> None:
    text = model.answered()
    spoken = [model.renderer.tokenizer.decode(text.input_ids[a:b]) for a, b in text.content]
    assert spoken == ["Be kind.", "Name a tree.", "The oak.", "Tell me about the ocean"]
    controls = model.renderer.control_ids
    assert not any(text.input_ids[row] in controls for a, b in text.content for row in range(a, b))


def test_a_template_token_after_the_content_changes_no_request_verdict(model, placement) -> None:
    """Nothing that follows the newest content reaches row 0, directly or through another row."""
    text = model.answered()
    rows = [request_row(text, placement)]
    before = model.one(text, rows).verdicts
    ids = list(text.input_ids)
    for row in range(text.content[-1].end, text.response.start):
        ids[row] = 70
    torch.testing.assert_close(model.one(replace(text, input_ids=tuple(ids)), rows).verdicts, before, **EXACT)


@pytest.mark.parametrize("pad", [0, 70])
def test_padding_is_invisible(model, many_rows, pad: int) -> None:
    long = model.answered()
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A day."}]
    short = model.renderer.render(turns)
    prompt = model.renderer.render([{"role": "user", "content": "Why?"}])
    layouts = [
        build_layout(long, many_rows(long), versions=(0, 3, 4)),
        build_layout(short, [request_row(short), window_row(short, *short.response)]),
        build_layout(prompt, [request_row(prompt)], gate=False),
    ]
    ids = [text.input_ids for text in (long, short, prompt)]
    together = model.forward(ids, layouts, pad)
    for text_ids, layout, seen in zip(ids, layouts, together, strict=True):
        alone = model.forward([text_ids], [layout])[0]
        torch.testing.assert_close(seen.lm, alone.lm, **EXACT)
        torch.testing.assert_close(seen.verdicts, alone.verdicts, **EXACT)
        torch.testing.assert_close(seen.states, alone.states, **EXACT)
