"""Answers that turn: at exactly the character and the token that the record says, each half what it was."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from safealign.data.records import BENIGN, MALICIOUS, Message, Record
from safealign.data.rendering import Renderer
from safealign.data.splicing import SPLICED, donor, splice, splice_all, turn_token
from safealign.data.validation import find_problems
from safealign.modeling.tiny import tiny_tokenizer

RENDERER = Renderer(tiny_tokenizer())
GOOD = "The sea is wide and blue. Waves come in with the wind, and ships sail on them to the other shore."
BAD = "Step one, do the placeholder deed; step two, do it again."


def _record(name: str, text: str, label: str = BENIGN) -> Record:
    return Record((Message("user", f"Ask {name}"), Message("assistant", text)), label, label, id=name)


def _spliced(seed: int, first: str = GOOD, second: str = BAD, opening: int = 12) -> Record | None:
    pair = _record("good", first), _record("bad#compliant", second, MALICIOUS)
    return splice(*pair, RENDERER, opening, random.Random(seed))


@given(seed=st.integers(0, 999), opening=st.integers(1, 30))
@settings(max_examples=40)
def test_the_turn_is_where_the_spans_say(seed: int, opening: int) -> None:
    record = _spliced(seed, opening=opening)
    assert record is not None and record.response is not None
    calm, harm = record.spans
    assert (calm.start, calm.end, calm.label) == (0, harm.start, BENIGN)
    assert (harm.end, harm.label) == (len(record.response), MALICIOUS)
    assert GOOD.startswith(record.response[: harm.start]) and record.response[harm.start :].strip() == BAD
    rendered = RENDERER.render(record.messages, close=False)
    turn = turn_token(record, RENDERER)
    assert turn is not None and rendered.offsets[turn][0] == harm.start == rendered.offsets[turn - 1][1]
    ids = rendered.input_ids[rendered.response.start :]
    assert RENDERER.tokenizer.decode(ids[:turn]) == record.response[: harm.start]
    assert RENDERER.tokenizer.decode(ids[turn:]) == record.response[harm.start :]
    assert 1 <= turn <= opening + 1, "cutting off a space can part a token in two, and no more"


@given(first=st.text(min_size=1, max_size=40), second=st.text(min_size=1, max_size=20), seed=st.integers(0, 9))
@settings(max_examples=60)
def test_of_any_two_texts_the_halves_come_apart_again(first: str, second: str, seed: int) -> None:
    if not first.strip() or any("\ud800" <= c <= "\udfff" for c in first + second):
        return
    record = _spliced(seed, first, second)
    if record is not None:
        turn, text = record.spans[1].start, record.response or ""
        assert first.startswith(text[:turn]) and text[turn:].strip() == second.strip()
        assert turn_token(record, RENDERER) is not None
        assert find_problems([record]) == []


def test_turns_come_in_the_middle_of_sentences_and_between_them() -> None:
    found = [_spliced(seed, opening=30) for seed in range(60)]
    ends = Counter((r.response or "")[r.spans[1].start - 1] == "." for r in found if r is not None)
    assert ends.total() == 60 and min(ends[True], ends[False]) > 10


def test_what_a_spliced_record_is() -> None:
    record = _spliced(0)
    assert record is not None
    assert (record.label, record.response_label, record.source) == (BENIGN, MALICIOUS, SPLICED)
    assert record.id == "good#splices:bad#compliant" and donor(record) == "bad"
    assert not record.learn and not record.complete and record.request == "Ask good"
    assert Record.from_dict(record.to_dict()) == record


def test_an_answer_of_one_token_has_no_place_for_a_turn() -> None:
    assert _spliced(0, first="a") is None and _spliced(0, second="  ") is None


def test_each_pair_comes_once_and_all_are_used_alike() -> None:
    calm = [_record(f"good{i}", GOOD) for i in range(4)]
    harm = [_record(f"bad{i}", BAD, MALICIOUS) for i in range(6)]
    found = splice_all(calm, harm, 12, RENDERER, 12, random.Random(0))
    assert len({record.id for record in found}) == len(found) == 12
    assert set(Counter((r.id or "").split("#")[0] for r in found).values()) == {3}
    assert max(Counter(donor(r) for r in found).values()) <= 3
    assert len(splice_all(calm, harm, 99, RENDERER, 12, random.Random(0))) == 24
    assert splice_all(calm, [], 5, RENDERER, 12, random.Random(0)) == []


def test_no_answer_turns_into_itself() -> None:
    calm = [_record(f"good{i}", GOOD) for i in range(4)]
    found = splice_all(calm, calm, 99, RENDERER, 12, random.Random(0))
    assert len(found) == 12 and all((r.id or "").split("#")[0] != donor(r) for r in found)
    assert {r.response_label for r in found} == {span.label for r in found for span in r.spans} == {BENIGN}


def test_the_seed_decides() -> None:
    calm = [_record(f"good{i}", GOOD) for i in range(4)]
    harm = [_record("bad", BAD, MALICIOUS)]
    one, same, other = (splice_all(calm, harm, 4, RENDERER, 12, random.Random(seed)) for seed in (1, 1, 2))
    assert one == same != other
