"""Validation: every fault of every row is named with its file and row, and sound rows pass."""

from __future__ import annotations

from typing import Any

import pytest

from safealign.data.records import LabelledSpan, Message, Record
from safealign.data.validation import Row, find_problems, require_valid
from safealign.errors import DataError

USER = {"role": "user", "content": "How do I bake bread?"}
ANSWER = {"role": "assistant", "content": "Mix, knead, bake."}
N = len(ANSWER["content"])


def row(*turns: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": list(turns or (USER, ANSWER)), **fields}


def span(start: Any, end: Any, label: str = "benign") -> dict[str, Any]:
    return {"start": start, "end": end, "label": label}


SOUND = [
    row(),
    row(USER),
    row({"role": "system", "content": "Be kind."}, USER, ANSWER, USER),
    row(label="benign", response_label="malicious", complete=False, note="any other column"),
    row(label="malicious", response_label="benign"),
    row(label="benign", response_label="benign", spans=[span(0, 4), span(4, N, "malicious")]),
    row(response_label="malicious", spans=[span(0, 4)]),
]

FAULTY = [
    ("text", "must be an object with messages, not text"),
    ({"label": "benign"}, "messages are missing"),
    ({"messages": "hello"}, "must be a list of turns, not text"),
    ({"messages": []}, "messages are empty"),
    (row("hello"), "turn 1 must be an object"),
    (row({"content": "hello"}), "turn 1 has no role"),
    (row({"role": "critic", "content": "hello"}), "turn 1 has the unknown role 'critic'"),
    (row({"role": "user"}), "turn 1 has no content"),
    (row({"role": "user", "content": ["a"]}), "turn 1 must have text as content, not a list"),
    (row({"role": "user", "content": " \n"}), r"turn 1 \(user\) is empty"),
    (row({"role": "user", "content": "\ud800"}), "half a surrogate pair"),
    (row(USER, {"role": "assistant", "content": ""}), r"turn 2 \(assistant\) is empty"),
    (row(ANSWER, USER), "turn 1 is the assistant's"),
    (row(USER, USER), "turn 2 is the user's"),
    (row(USER, {"role": "system", "content": "s"}), "turn 2 is the system's"),
    (row({"role": "system", "content": "s"}), "there is no user turn"),
    (row(label="evil"), "unknown label 'evil': choose benign or malicious"),
    (row(label=1), "unknown label 1"),
    (row(response_label="bad"), "unknown response_label 'bad'"),
    (row(USER, response_label="benign"), "response_label is set but there is no final assistant turn"),
    (row(id=7), "id must be text, not a number"),
    (row(complete="no"), "complete must be true or false"),
    (row(lable="benign"), "unknown field 'lable': did you mean 'label'"),
    (row(spans="all"), "spans must be a list"),
    (row(USER, spans=[span(0, 1)]), "spans are set but there is no final assistant turn"),
    (row(spans=[3]), "span 1 must be an object"),
    (row(spans=[span(0, 2, "odd")]), "span 1 has the unknown label 'odd'"),
    (row(spans=[span("0", 2)]), "span 1 must have whole numbers"),
    (row(spans=[span(2, 2)]), r"span 1 is empty \(2 to 2\)"),
    (row(spans=[span(-1, 2)]), "lies outside the answer, which has 17 characters"),
    (row(spans=[span(0, N + 1)]), "lies outside the answer"),
    (row(spans=[span(5, 9), span(0, 6)]), "spans 2 and 1 overlap"),
    (row(response_label="malicious", spans=[span(0, N)]), "its spans say that all of it is benign"),
]  # fmt: skip


def test_sound_rows_have_no_problems() -> None:
    assert find_problems(SOUND, refused=lambda text: False) == []


@pytest.mark.parametrize(("data", "message"), FAULTY)
def test_each_fault_is_named_once_with_its_place(data: Any, message: str) -> None:
    problems = find_problems([Row("data.jsonl:7", data)])
    assert len(problems) == 1 and problems[0].startswith("data.jsonl:7: ")
    with pytest.raises(DataError, match=message):
        require_valid([Row("data.jsonl:7", data)])


def test_all_faults_of_all_rows_are_reported() -> None:
    rows = [Row(f"data.jsonl:{number}", data) for number, (data, _) in enumerate(FAULTY, start=1)]
    rows.insert(5, Row("other.jsonl:1", None, "is not JSON (at column 3)"))
    with pytest.raises(DataError) as caught:
        require_valid(rows, "data.jsonl")
    places = {problem.rsplit(": ", 1)[0].split(": ")[0] for problem in caught.value.problems}
    assert places == {row.where for row in rows}
    assert all(problem in str(caught.value) for problem in caught.value.problems)


def test_one_row_with_several_faults() -> None:
    assert len(find_problems([row({"role": "critic", "content": ""}, label="evil", id=1)])) == 4


def test_refusal_at_odds_with_its_label() -> None:
    data = row(
        USER,
        {"role": "assistant", "content": "I cannot help."},
        label="malicious",
        response_label="malicious",
    )
    assert find_problems([data]) == []
    problems = find_problems([data], refused=lambda text: "cannot" in text)
    assert problems == ["row 1: the answer is labelled malicious, but it is a refusal"]


def test_answer_that_speaks_of_refusing_later_is_no_refusal() -> None:
    answer = {"role": "assistant", "content": "Go ahead. Say that they cannot stop you."}
    assert find_problems([row(USER, answer, response_label="malicious")], lambda text: "cannot" in text) == []


def test_repeated_ids_name_the_first_place() -> None:
    records = [Record((Message("user", "a"),), id="x", where=f"f.jsonl:{n}") for n in (1, 2, 3)]
    problems = find_problems([*records, Record((Message("user", "b"),), id="y")])
    assert [problem.split(":")[1] for problem in problems] == ["2", "3"]
    assert all("at f.jsonl:1" in problem for problem in problems)


def test_records_are_checked_like_rows() -> None:
    turns = (Message("user", "a"), Message("assistant", "bc"))
    record = Record(turns, spans=(LabelledSpan(1, 5, "benign"),), where="f.parquet:4")
    assert find_problems([record]) == [
        "f.parquet:4: span 1 (1 to 5) lies outside the answer, which has 2 characters"
    ]
