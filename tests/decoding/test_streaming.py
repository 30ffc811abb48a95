"""Streamed text: whole characters only, and joined it is the whole text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import World, make_world

from safealign.decoding.streaming import TextStream, text_of
from safealign.modeling.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


@given(st.text(max_size=40), st.data())
def test_pieces_join_to_the_text_and_hold_no_broken_character(text: str, data: st.DataObject) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    stream, pieces = TextStream(TOKENIZER), []
    while ids:
        size = data.draw(st.integers(1, 4))
        pieces.append(stream.push(ids[:size]))
        ids = ids[size:]
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text
    assert "".join(pieces) + stream.finish() == TOKENIZER.decode(TOKENIZER.encode(text, add_special_tokens=False))


def test_an_incomplete_character_waits_and_is_marked_at_the_end() -> None:
    first, *rest = TOKENIZER.encode("€", add_special_tokens=False)
    stream = TextStream(TOKENIZER)
    assert stream.push([first]) == ""
    assert stream.push(rest) == "€"
    assert stream.push([first]) == ""
    assert stream.finish() == "\ufffd"


def test_context_is_not_part_of_the_text() -> None:
    prefix = TOKENIZER.encode("Once upon", add_special_tokens=False)
    ids = TOKENIZER.encode(" a time", add_special_tokens=False)
    assert text_of(TOKENIZER, ids, prefix) == " a time"


def test_special_tokens_have_no_text() -> None:
    assert text_of(TOKENIZER, [TOKENIZER.eos_token_id, *TOKENIZER.encode("hi")]) == "hi"


@pytest.fixture(scope="module")
def other() -> World:
    return make_world(9)


def test_text_of_equals_one_decode(other: World) -> None:
    ids = list(range(3, 200))
    assert text_of(other.renderer.tokenizer, ids) == other.renderer.tokenizer.decode(ids)
