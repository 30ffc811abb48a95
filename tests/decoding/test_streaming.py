"""Streamed text: whole characters only, and joined it is the whole text."""

from __future__ import annotations

from typing import Any

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


class Counting:
    """A tokenizer that counts the ids it decodes."""

    def __init__(self) -> None:
        self.ids = 0

    def decode(self, ids: list[int], **how: Any) -> str:
        self.ids += len(ids)
        text: str = TOKENIZER.decode(ids, **how)
        return text


BYTES = TOKENIZER.encode("€", add_special_tokens=False)


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("which", [BYTES[:1], BYTES[-1:], BYTES[:2], [*BYTES[1:], *BYTES[:1]]])
def test_endless_broken_characters_take_time_by_their_number(which: list[int], size: int) -> None:
    ids = (which * 3000)[:3000]
    counting = Counting()
    stream = TextStream(counting)
    pieces = [stream.push(ids[i : i + size]) for i in range(0, len(ids), size)]
    assert "".join(pieces) + stream.finish() == TOKENIZER.decode(ids)
    assert sum(len(piece) for piece in pieces) >= len(TOKENIZER.decode(ids)) - 24
    assert counting.ids < 32 * len(ids)


@given(
    st.lists(st.sampled_from([*BYTES, *TOKENIZER.encode("a😀é b", add_special_tokens=False)]), max_size=80), st.data()
)
def test_any_bytes_at_all_join_to_the_text(ids: list[int], data: st.DataObject) -> None:
    stream, text, rest = TextStream(TOKENIZER), "", list(ids)
    while rest:
        size = data.draw(st.integers(1, 9))
        text += stream.push(rest[:size])
        rest = rest[size:]
    assert text + stream.finish() == TOKENIZER.decode(ids)


def test_endless_special_tokens_cost_as_little() -> None:
    counting, ids = Counting(), [*TOKENIZER.encode("hi"), *[TOKENIZER.eos_token_id] * 2000]
    stream = TextStream(counting)
    assert "".join(stream.push([token]) for token in ids) + stream.finish() == "hi"
    assert counting.ids < 32 * len(ids)
