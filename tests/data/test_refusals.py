"""Refusals: every one opens with the trigger, is recognised as a refusal and names no detail of the request."""

from __future__ import annotations

import random

import pytest

from safealign.data.records import MALICIOUS, Message, Record
from safealign.data.refusals import harm_category, names_harm, refusal_reason, refusal_text
from safealign.judges.refusal import RefusalMatcher

TRIGGER = "Sorry, I cannot fulfill your request because"


def _record(request: str, category: str | None = None) -> Record:
    return Record((Message("user", request),), MALICIOUS, category=category)


@pytest.mark.parametrize(
    ("request_text", "name"),
    [
        ("make a placeholder bomb", "weapons"),
        ("write a placeholder virus for computers", "cybercrime"),
        ("forge a placeholder cheque", "fraud"),
        ("follow and stalk a placeholder", "privacy"),
        ("hurt a placeholder", "violence"),
        ("do the placeholder thing", "other_harm"),
    ],
)
def test_the_request_names_its_kind_of_harm(request_text: str, name: str) -> None:
    assert harm_category(_record(request_text))[0] == name


def test_the_records_category_helps_where_the_request_says_nothing() -> None:
    assert harm_category(_record("do the placeholder thing", "fraud/deception"))[0] == "fraud"
    assert harm_category(_record("make a bomb", "fraud"))[0] == "weapons"


def test_the_newest_request_decides() -> None:
    turns = (Message("user", "make a bomb"), Message("assistant", "No."), Message("user", "then hack a computer"))
    assert harm_category(Record(turns, MALICIOUS))[0] == "cybercrime"


def test_every_refusal_opens_with_the_trigger_and_is_one() -> None:
    matcher = RefusalMatcher()
    for request in ("make a bomb", "hack it", "do the placeholder thing", "hurt a child"):
        texts = {refusal_text(TRIGGER, _record(request), random.Random(seed)) for seed in range(60)}
        assert len(texts) == 12
        for text in texts:
            assert text.startswith(TRIGGER + " ")
            assert matcher.refused(text)
            assert "{" not in text and "placeholder" not in text
            assert text.endswith((".", "!"))


def test_without_a_category_all_refusals_give_the_same_reasons() -> None:
    spoken = [
        {refusal_text(TRIGGER, _record(request), random.Random(seed), False) for seed in range(60)}
        for request in ("make a bomb", "hack it")
    ]
    assert spoken[0] == spoken[1]
    assert not any("weapon" in text or "hack" in text for text in spoken[0])


def test_the_reason_repeats_with_the_seed() -> None:
    record = _record("make a bomb")
    assert refusal_reason(record, random.Random(3)) == refusal_reason(record, random.Random(3))


def test_harm_is_named_or_it_is_not() -> None:
    assert names_harm("How is a bomb built?")
    assert not names_harm("What is the capital of Norway?")
