"""Train and test parts of one source: disjoint, whole, pairs together, the same for ever."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from safealign.data.parts import TEST_SHARE, take_part
from safealign.data.readers import pair_of
from safealign.data.records import Message, Record
from safealign.errors import DataError


def _records(n: int = 400, source: str = "made") -> list[Record]:
    return [Record((Message("user", f"q{i}"),), id=f"{source}/{i}") for i in range(n)]


@pytest.mark.parametrize("source", ["made", "alpaca", "overrefusal"])
def test_the_parts_are_disjoint_and_whole(source: str) -> None:
    records = _records(source=source)
    train, test = (take_part(records, part, source) for part in ("train", "test"))
    assert not {r.id for r in train} & {r.id for r in test}
    assert sorted([*train, *test], key=records.index) == records
    assert take_part(records, "all", source) == records
    share = TEST_SHARE.get(source, 0.2)
    assert abs(len(test) / len(records) - share) < 0.1


def test_a_rows_part_depends_on_its_id_alone() -> None:
    records = _records()
    shuffled = random.Random(0).sample(records, len(records))
    fewer = records[::3]
    test = {r.id for r in take_part(records, "test", "made")}
    assert {r.id for r in take_part(shuffled, "test", "made")} == test
    assert {r.id for r in take_part(fewer, "test", "made")} == test & {r.id for r in fewer}
    # Pinned: a run of today must not train on what a run of last year was tested on.
    assert [r.id for r in take_part(records, "test", "made")][:4] == PINNED


PINNED = ["made/3", "made/5", "made/6", "made/13"]


@pytest.mark.parametrize("source", ["matched_pairs", "rho_refusal_pairs"])
def test_matched_pairs_stay_together(source: str) -> None:
    records = [
        Record((Message("user", "q"),), id=f"{source}/{topic}/{number}#{side}")
        for topic in ("a", "b")
        for number in range(40)
        for side in ("one", "other")
    ]
    train, test = ({pair_of(record) for record in take_part(records, part, source)} for part in ("train", "test"))
    assert train and test and not train & test
    assert len(train | test) == 80


def test_an_unknown_part_is_refused_with_the_choices() -> None:
    with pytest.raises(DataError, match="validation.*train, test"):
        take_part(_records(3), "validation", "made")


def test_a_row_without_an_id_is_refused_with_its_place() -> None:
    row = Record((Message("user", "q"),), where=str(Path("mine.jsonl:7")))
    with pytest.raises(DataError, match=r"mine\.jsonl:7"):
        take_part([row], "train", "mine")
    assert take_part([row], "all", "mine") == [row]
