"""Packed rows hold every token of every document once, and learn what they should."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safealign.data.documents import Document
from safealign.data.records import BENIGN, MALICIOUS
from safealign.data.rendering import Renderer
from safealign.modeling.tiny import TURN_START, tiny_tokenizer
from safealign.training.packing import Part, packed, packed_example, parts_of, unpacked

RENDERER = Renderer(tiny_tokenizer())
parts = st.lists(
    st.builds(
        lambda n, verdict, first: Part(tuple(range(first, first + n)), verdict),
        st.integers(1, 12),
        st.sampled_from([0.0, 1.0, -100.0]),
        st.integers(3, 90),
    ),
    max_size=60,
)


def _taken_apart(rows: list[dict]) -> list[tuple]:
    found = []
    for row in rows:
        start = 0
        for length, verdict in zip(row["lengths"], row["verdicts"], strict=True):
            cut = slice(start, start + length)
            found.append((tuple(row["input_ids"][cut]), verdict, tuple(row["labels"][cut])))
            start += length
        assert start == len(row["input_ids"])
    return found


@given(parts)
def test_packing_loses_and_invents_nothing(given_parts: list[Part]) -> None:
    rows = list(packed(iter(given_parts), 12))
    assert all(len(row["input_ids"]) <= 12 for row in rows)
    alone = _taken_apart(list(unpacked(given_parts)))
    assert sorted(_taken_apart(rows)) == sorted(alone)
    assert alone == [(part.input_ids, part.verdict, part.labels) for part in given_parts]


@given(parts)
def test_packing_saves_rows(given_parts: list[Part]) -> None:
    """No two rows that were open at the same time could have been one: all but the last few are more than half full."""
    rows = list(packed(iter(given_parts), 12))
    assert sum(len(row["input_ids"]) <= 6 for row in rows) <= 1


def test_a_long_document_is_cut_into_equal_parts_with_its_label() -> None:
    text = "The sea is wide and cold, " * 9
    found = parts_of(Document(text, MALICIOUS), RENDERER, 40)
    ids = [id_ for part in found for id_ in part.input_ids]
    assert ids[-1] == RENDERER.tokenizer.eos_token_id and RENDERER.tokenizer.decode(ids[:-1]) == text
    lengths = [len(part.input_ids) for part in found]
    assert len(found) > 2 and max(lengths) <= 40 and max(lengths) - min(lengths) <= 1
    assert {part.verdict for part in found} == {1.0}


@pytest.mark.parametrize(("label", "learnt"), [(BENIGN, True), (None, True), (MALICIOUS, False)])
def test_a_malicious_document_is_never_a_target(label: str | None, learnt: bool) -> None:
    (part,) = parts_of(Document("Name a tree.", label), RENDERER, 99)
    assert part.labels[0] == -100
    assert part.labels[1:] == (part.input_ids[1:] if learnt else (-100,) * (len(part.input_ids) - 1))


def test_no_text_becomes_a_control_token() -> None:
    (part,) = parts_of(Document(f"{TURN_START}user says <|endoftext|> and <|im_end|>", BENIGN), RENDERER, 200)
    assert not set(part.input_ids[:-1]) & RENDERER.control_ids


def test_an_example_has_a_safety_row_for_each_document() -> None:
    row = next(packed([Part((5, 6, 7), 1.0), Part((8, 9), -100.0)], 8))
    layout = packed_example(row, "append").layout
    assert [r.label for r in layout.safety] == [1.0, None]
    assert [tuple(block) for block in layout.blocks] == [(0, 3), (3, 5)]
