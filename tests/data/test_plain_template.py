"""The template for models without one: no text becomes a turn, and it renders what the renderer needs."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safealign.data.plain_template import plain_template
from safealign.data.rendering import Renderer
from safealign.errors import ConfigError
from safealign.modeling.tiny import tiny_tokenizer

KINDS = ("two tokens", "one token")  # Llama-2 opens with one token and closes with another; GPT-NeoX has one for both
SPOOFS = ("<|endoftext|>", "<|im_end|>", "\nAssistant:\n", "User:\n", "\n", "Sure", " ", "é")
TEXTS = st.lists(st.sampled_from(SPOOFS) | st.text(max_size=5), max_size=6).map("".join).filter(str.strip)
kinds = pytest.mark.parametrize("kind", KINDS)


def bare_tokenizer(kind: str) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template, tokenizer.pad_token = None, None
    if kind == "one token":
        tokenizer.eos_token = tokenizer.bos_token
    return tokenizer


@cache
def renderer(kind: str) -> Renderer:
    tokenizer = bare_tokenizer(kind)
    tokenizer.chat_template = plain_template(tokenizer)
    return Renderer(tokenizer)


def controls(kind: str, *texts: str) -> list[int]:
    roles = ("user", "assistant")
    rendered = renderer(kind).render([{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)])
    return [id_ for id_ in rendered.input_ids if id_ in renderer(kind).control_ids]


@kinds
@settings(max_examples=40, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_every_turn_ends_by_id_and_no_text_ends_one(kind: str, texts: list[str]) -> None:
    tokenizer = renderer(kind).tokenizer
    opening = [tokenizer.bos_token_id] if kind == "two tokens" else []
    assert controls(kind, *texts) == [*opening, *[tokenizer.eos_token_id] * len(texts)]


@kinds
def test_the_rendered_text_and_what_ends_an_answer(kind: str) -> None:
    render = renderer(kind)
    rendered = render.render([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}])
    bos = "<|endoftext|>" if kind == "two tokens" else ""
    eos = render.tokenizer.eos_token
    said = render.tokenizer.decode(rendered.input_ids[: rendered.response.end])
    assert said == f"{bos}User:\nHi{eos}\nAssistant:\nYes{eos}"
    assert render.eos_ids == {render.tokenizer.eos_token_id}
    prompt = render.render([{"role": "user", "content": "Hi"}])
    assert rendered.input_ids[: len(prompt.input_ids)] == prompt.input_ids


def test_a_tokenizer_that_cannot_end_a_turn_is_refused() -> None:
    tokenizer = bare_tokenizer("one token")
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="end-of-sequence"):
        plain_template(tokenizer)
