"""Records: what they give and that they survive the way to JSON and back."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from safealign.data.records import LabelledSpan, Message, Record

TEXT = st.text(max_size=20)
OPTIONAL = st.none() | TEXT
ODD = st.recursive(
    st.none() | st.integers() | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=6,
)
RECORDS = st.builds(
    Record,
    messages=st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant"]), TEXT)).map(tuple),
    label=st.sampled_from(["benign", "malicious", None]),
    response_label=st.sampled_from(["benign", "malicious", None]),
    spans=st.lists(st.builds(LabelledSpan, st.integers(0, 9), st.integers(0, 9), TEXT)).map(tuple),
    id=OPTIONAL,
    source=OPTIONAL,
    category=OPTIONAL,
    where=TEXT,
    complete=st.booleans(),
    learn=st.booleans(),
)


@given(RECORDS)
def test_record_survives_json(record: Record) -> None:
    row = json.loads(json.dumps(record.to_dict()))
    assert Record.from_dict(row, record.where) == record


@settings(max_examples=40)
@given(st.dictionaries(st.sampled_from(["messages", "spans", "label", "id"]), ODD))
def test_from_dict_raises_nothing(row: dict[str, object]) -> None:
    Record.from_dict(row)


def test_prompt_response_and_request() -> None:
    turns = (Message("system", "s"), Message("user", "u"), Message("assistant", "a"))
    answered, asked = Record(turns), Record(turns[:2])
    assert (answered.prompt, answered.response, answered.request) == (turns[:2], "a", "u")
    assert (asked.prompt, asked.response, asked.request) == (turns[:2], None, "u")
