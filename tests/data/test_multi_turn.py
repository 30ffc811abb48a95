"""Later turns: both labels alike, labels and answers kept, nothing made of nothing."""

from __future__ import annotations

from collections import Counter

from safealign.data.multi_turn import later_turns
from safealign.data.records import BENIGN, MALICIOUS, Message, Record


def _record(index: int, label: str, answer: str | None = None, **more: object) -> Record:
    turns = [Message("user", f"{label} question {index}")]
    turns += [Message("assistant", answer)] if answer else []
    return Record(tuple(turns), label=label, id=f"{label}{index}", **more)  # type: ignore[arg-type]


SIDES = {
    BENIGN: [_record(i, BENIGN, f"answer {i}" if i % 2 else None) for i in range(20)],
    MALICIOUS: [_record(i, MALICIOUS) for i in range(20)],
}


def test_both_labels_get_as_many_after_a_whole_benign_exchange() -> None:
    found = later_turns(SIDES, 8, 0)
    assert Counter(record.label for record in found) == {BENIGN: 8, MALICIOUS: 8}
    by_id = {record.id: record for side in SIDES.values() for record in side}
    for record in found:
        original = by_id[record.id.removesuffix("#later_turn")]  # type: ignore[union-attr]
        assert record.messages[2:] == original.messages
        assert [turn.role for turn in record.messages[:3]] == ["user", "assistant", "user"]
        assert record.messages[0].content.startswith("benign") and record.messages[0] != record.messages[2]
    assert found == later_turns(SIDES, 8, 0) != later_turns(SIDES, 8, 1)


def test_no_more_than_there_are_and_none_without_an_exchange() -> None:
    assert len(later_turns(SIDES, 100, 0)) == 40
    assert later_turns({BENIGN: [_record(0, BENIGN)], MALICIOUS: SIDES[MALICIOUS]}, 5, 0) == []


def test_only_short_harmless_whole_answers_come_before() -> None:
    long = [_record(1, BENIGN, "x" * 300), _record(2, BENIGN, "bad", response_label=MALICIOUS)]
    cut = [_record(3, BENIGN, "cut off", complete=False)]
    assert later_turns({BENIGN: [*long, *cut], MALICIOUS: SIDES[MALICIOUS]}, 5, 0) == []
