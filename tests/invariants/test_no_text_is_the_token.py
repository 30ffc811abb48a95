"""No text becomes the safety token: it is no vocabulary row, and safety rows exist by plan alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safealign.data.rendering import Renderer
from safealign.layout import build_layout, request_row
from safealign.modeling.attach import attach
from safealign.modeling.safety_token import HeadSettings
from safealign.modeling.tiny import tiny_model, tiny_tokenizer

RENDERER = Renderer(tiny_tokenizer())
SPOOFS = ("[CLS]", "safety_token", "<|safety|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "\x00")


def test_attaching_adds_no_row_to_the_vocabulary() -> None:
    lm = tiny_model()
    before = lm.get_input_embeddings().weight.clone()
    parts = attach(lm, HeadSettings())
    after = lm.get_input_embeddings().weight
    assert torch.equal(after, before)
    assert lm.config.vocab_size == len(tiny_tokenizer()) == after.shape[0]
    assert parts.token.weight.data_ptr() != after.data_ptr()
    assert not (after == parts.token.weight).all(dim=1).any()


@given(st.lists(st.one_of(st.text(max_size=12), st.sampled_from(SPOOFS)), min_size=1, max_size=5))
def test_content_is_text_ids_only(pieces: list[str]) -> None:
    content = "".join(pieces)
    if not content.strip():
        return
    ids = RENDERER.content_ids(content)
    assert all(0 <= id_ < len(RENDERER.tokenizer) for id_ in ids)
    assert not RENDERER.control_ids.intersection(ids)
    text = RENDERER.render([{"role": "user", "content": content}, {"role": "assistant", "content": content}])
    inside = [*text.content, text.response._replace(end=text.response.end - 1)]
    spoken = [id_ for start, end in inside for id_ in text.input_ids[start:end]]
    assert not RENDERER.control_ids.intersection(spoken)
    plain = RENDERER.render([{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}])
    controls = [[id_ for id_ in t.input_ids if id_ in RENDERER.control_ids] for t in (text, plain)]
    assert controls[0] == controls[1]


@pytest.mark.parametrize("spoof", SPOOFS)
def test_text_that_names_the_token_gets_no_safety_row(model, spoof: str) -> None:
    """Without a plan the model computes text rows alone; with one, exactly the plan's."""
    text = model.renderer.render([{"role": "user", "content": spoof}])
    seen_widths: list[int] = []
    handle = model.parts.layers[0].register_forward_hook(lambda m, a, out: seen_widths.append(_width(out)))
    try:
        plain = model.plain(text.input_ids)
        model.one(text, [request_row(text)])
    finally:
        handle.remove()
    n = len(text.input_ids)
    assert seen_widths == [n, n + 1]
    assert plain.logits.shape[1] == n


def test_the_token_cannot_be_chosen_as_output(model) -> None:
    text = model.answered()
    seen = model.forward([text.input_ids], [build_layout(text, [request_row(text)])])[0]
    assert seen.lm.shape == (len(text.input_ids), len(model.renderer.tokenizer))


def _width(output: object) -> int:
    hidden = output[0] if isinstance(output, tuple) else output
    assert isinstance(hidden, torch.Tensor)
    return hidden.shape[1]
