"""Pairings: every request and harmful answer once, all four combinations, transitions with exact spans."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safealign.data.pairings import PairingSettings, pair, transitions
from safealign.data.records import BENIGN, MALICIOUS, LabelledSpan, Message, Record
from safealign.data.validation import require_valid
from safealign.judges.refusal import RefusalMatcher

TRIGGER = "Sorry, I cannot fulfill your request because"


def _record(request: str, answer: str | None, label: str, judged: str | None = None, **more: Any) -> Record:
    turns = [Message("user", request), *([Message("assistant", answer)] if answer is not None else [])]
    return Record(tuple(turns), label, judged, id=request.replace(" ", "-"), source="made", **more)


def _requests(n: int = 8) -> list[Record]:
    good = [_record(f"name tree {i}", "The oak, an old tree.", BENIGN, BENIGN) for i in range(n)]
    bare = [_record(f"name bird {i}", None, BENIGN) for i in range(2)]
    bad = [_record(f"do deed {i}", None, MALICIOUS) for i in range(n)]
    return [*good, *bare, *bad]


def _harmful(n: int = 4) -> list[Record]:
    return [_record(f"say how {i}", f"Step one of {i}, then step two", MALICIOUS, MALICIOUS) for i in range(n)]


def _pair(seed: int = 0, **limits: Any) -> list[Record]:
    return pair(_requests(), _harmful(), PairingSettings(TRIGGER, **{"refusals": 5, "transitions": 3} | limits), seed)


def test_all_four_pairings_occur() -> None:
    seen = {(record.label, record.response_label) for record in _pair() if record.response}
    assert seen == {(a, b) for a in (BENIGN, MALICIOUS) for b in (BENIGN, MALICIOUS)}


def test_every_request_and_every_harmful_answer_is_there_once() -> None:
    found = Counter((record.id or "").split("#")[0] for record in _pair() if "#turns" not in (record.id or ""))
    assert set(found.values()) == {1}
    assert set(found) == {record.id for record in (*_requests(), *_harmful())}
    ids = [record.id for record in _pair()]
    assert len(set(ids)) == len(ids)


def test_what_comes_out_is_valid_and_no_refusal_is_called_harmful() -> None:
    require_valid(_pair(), "paired", RefusalMatcher().refused)


def test_limits_are_kept_and_leave_no_request_twice() -> None:
    limits = {"refusals": 2, "benign_answers": 3, "harmful_answers": 1, "transitions": 2, "prompts": 6}
    found = _pair(**limits)
    kinds = Counter((r.label, r.response_label if r.response else "prompt") for r in found)
    assert kinds == {
        (MALICIOUS, BENIGN): 2,
        (BENIGN, BENIGN): 3,
        (MALICIOUS, MALICIOUS): 1,
        (BENIGN, MALICIOUS): 2,
        (MALICIOUS, "prompt"): 3,
        (BENIGN, "prompt"): 3,
    }
    asked = Counter(record.request for record in found if "#turns" not in (record.id or ""))
    assert set(asked.values()) == {1}


def test_unlabelled_chat_is_learned_as_it_is() -> None:
    chat = Record((Message("user", "hello you"), Message("assistant", "Hello, you.")), id="chat")
    assert pair([chat], [], PairingSettings(TRIGGER), 0) == [chat]


def test_so_many_refusals_as_asked_for_and_the_rest_are_prompts() -> None:
    malicious = [r for r in _pair(refusals=5) if r.label == MALICIOUS and r.response_label != MALICIOUS]
    refusals = [r for r in malicious if r.response]
    assert (len(refusals), len(malicious)) == (5, 8)
    for record in refusals:
        assert record.response is not None and record.response.startswith(TRIGGER)
        assert RefusalMatcher().refused(record.response)
        assert record.response_label == BENIGN and record.complete
        assert record.id is not None and record.id.endswith("#refusal")
    assert len([r for r in _pair(refusals=99) if (r.id or "").endswith("#refusal")]) == 8


def test_a_malicious_requests_own_answer_of_unknown_worth_is_never_kept() -> None:
    requests = [_record(f"do deed {i}", "An answer nobody judged", MALICIOUS) for i in range(4)]
    for record in pair(requests, [], PairingSettings(TRIGGER, refusals=2), 0):
        assert "nobody judged" not in (record.response or "")
        assert record.response is not None or record.response_label is None


def test_benign_requests_keep_their_own_answers() -> None:
    benign = [r for r in _pair(transitions=0) if r.label == BENIGN]
    assert len(benign) == 10 and set(benign) == {r for r in _requests() if r.label == BENIGN}


def test_harmful_answers_among_the_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="harmful_answers"):
        pair(_harmful(), [], PairingSettings(TRIGGER), 0)


def test_malicious_requests_carry_their_kind_of_harm() -> None:
    bomb = _record("build a placeholder bomb", None, MALICIOUS)
    found = pair([bomb], _harmful(), PairingSettings(TRIGGER), 0)
    assert found[0].category == "weapons"
    assert all(record.category for record in found if record.label == MALICIOUS)


def test_pairings_repeat_with_the_seed() -> None:
    assert _pair(seed=1) == _pair(seed=1)
    assert _pair(seed=1) != _pair(seed=2)


TEXT = st.text("ab .\n", min_size=1, max_size=30)


@given(opening=TEXT, harm=TEXT.filter(str.strip), seed=st.integers(0, 50))
def test_a_transition_labels_exactly_the_harmful_part(opening: str, harm: str, seed: int) -> None:
    benign = _record("name a tree", opening, BENIGN, BENIGN)
    harmful = _record("say how", harm.replace("a", "X").replace("b", "Z").replace(".", "Q"), MALICIOUS, MALICIOUS)
    (found,) = transitions([benign], [harmful], PairingSettings(TRIGGER), random.Random(seed))
    assert (found.label, found.response_label, found.complete) == (BENIGN, MALICIOUS, False)
    assert found.prompt == benign.prompt
    (span,) = found.spans
    text = found.response or ""
    assert 0 <= span.start < span.end <= len(text)
    assert span.label == MALICIOUS
    assert text[span.start : span.end].strip() == (harmful.response or "").strip()
    assert not set(text[: span.start]) & set("XZQ")
    assert set(text[span.start : span.end]) <= set("XZQ \n")


def test_transitions_open_with_the_requests_own_words_of_varying_length() -> None:
    benign = [_record(f"tree {i}", "one two three four five six seven eight", BENIGN, BENIGN) for i in range(40)]
    found = transitions(benign, _harmful(), PairingSettings(TRIGGER, transitions=40), random.Random(0))
    lengths = {len((r.response or "")[: r.spans[0].start].split()) for r in found}
    assert len(found) == 40
    assert lengths == set(range(8))
    for record in found:
        assert "one two three four five six seven eight".startswith(
            (record.response or "")[: record.spans[0].start].strip()
        )


def test_there_are_no_transitions_without_both_sides() -> None:
    settings, rng = PairingSettings(TRIGGER), random.Random(0)
    assert transitions([], _harmful(), settings, rng) == []
    assert transitions(_requests(1)[:1], [], settings, rng) == []


def test_spans_of_harmful_answers_survive() -> None:
    spans = (LabelledSpan(5, 10, MALICIOUS),)
    harmful = _record("say how", "Well, step one", MALICIOUS, MALICIOUS, spans=spans)
    assert pair([], [harmful], PairingSettings(TRIGGER), 0)[0].spans == spans


# ---- answers that turn, made beforehand ------------------------------------------------------------------------


def _spliced(n: int, label: str) -> list[Record]:
    return [_record(f"turn {label} {i}", "The oak. Step one.", BENIGN, label, learn=False) for i in range(n)]


@pytest.mark.parametrize(("ready", "taken"), [(0, 0), (2, 2), (9, 5)])
def test_transitions_are_taken_from_those_made_beforehand_first(ready: int, taken: int) -> None:
    made = [*_spliced(ready, MALICIOUS), *_spliced(ready, BENIGN)]
    settings = PairingSettings(TRIGGER, transitions=5)
    ids = [record.id for record in pair(_requests(), _harmful(), settings, 0, made)]
    turning, breaking = ({r.id for r in made if r.response_label == label} for label in (MALICIOUS, BENIGN))
    assert len(turning & set(ids)) == len(breaking & set(ids)) == taken
    assert sum("#turns" in (id_ or "") for id_ in ids) == 5 - taken


def test_without_them_nothing_changes() -> None:
    assert pair(_requests(), _harmful(), PairingSettings(TRIGGER), 3, ()) == pair(
        _requests(), _harmful(), PairingSettings(TRIGGER), 3
    )
