"""Documents from files and named data sets; every bad row says where it stands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from safealign.config.groups import SourceConfig
from safealign.data import documents
from safealign.data.documents import Document, Fault, read_documents, round_robin, sound
from safealign.data.records import BENIGN, MALICIOUS, LabelledSpan, Message, Record
from safealign.errors import AssetError, DataError

ROWS = [{"text": "The sea is wide."}, {"text": "Do the deed.", "label": "malicious", "id": "d2"}]


def _jsonl(folder: Path, rows: Sequence[Any]) -> SourceConfig:
    path = folder / "mine.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return SourceConfig(source=str(path))


def test_rows_of_a_file_in_order(tmp_path: Path) -> None:
    found = list(read_documents(_jsonl(tmp_path, ROWS)))
    assert found == [
        Document("The sea is wide.", None, "mine.jsonl:1", "mine", "mine.jsonl:1"),
        Document("Do the deed.", MALICIOUS, "d2", "mine", "mine.jsonl:2"),
    ]


def test_parquet_gives_the_same(tmp_path: Path) -> None:
    path = tmp_path / "mine.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"label": None, "id": None, **row} for row in ROWS]), path)
    found = list(read_documents(SourceConfig(source=str(path))))
    assert [(d.text, d.label) for d in found if isinstance(d, Document)] == [(r["text"], r.get("label")) for r in ROWS]


def test_the_sources_label_is_for_rows_without_one(tmp_path: Path) -> None:
    source = _jsonl(tmp_path, ROWS)
    source.label = BENIGN
    assert [d.label for d in sound(read_documents(source))] == [BENIGN, MALICIOUS]


def test_limit_and_renamed_columns(tmp_path: Path) -> None:
    source = _jsonl(tmp_path, [{"body": "one"}, {"body": "two"}, {"body": "three"}])
    source.fields, source.limit = {"text": "body"}, 2
    assert [d.text for d in sound(read_documents(source))] == ["one", "two"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"text": ', "is not JSON"),
        ([1], "must be an object"),
        ({"txt": "x"}, "did you mean text by 'txt'"),
        ({"body": "x"}, "name its column in fields"),
        ({"text": "  "}, "not blank"),
        ({"text": 3}, "must be a string"),
        ({"text": "x", "label": "evil"}, "benign or malicious"),
        ({"text": "x", "id": 3}, "id must be a string"),
        ('{"text": "\\ud800"}', "lone surrogate"),
    ],
)
def test_a_bad_row_is_a_fault_with_file_and_row(tmp_path: Path, row: Any, reason: str) -> None:
    first, second, third = read_documents(_jsonl(tmp_path, [ROWS[0], row, ROWS[1]]))
    assert isinstance(first, Document) and isinstance(third, Document)
    assert isinstance(second, Fault) and second.where == "mine.jsonl:2" and reason in second.reason
    with pytest.raises(DataError, match=r"mine\.jsonl:2"):
        list(sound(iter([first, second])))


def test_a_source_that_is_not_there_and_a_part_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="no data set"):
        list(read_documents(SourceConfig(source="nothing")))
    source = _jsonl(tmp_path, ROWS)
    source.part = "train"
    with pytest.raises(DataError, match="part=train"):
        list(read_documents(source))


def test_a_record_is_its_turns_and_malicious_where_any_part_is(monkeypatch: pytest.MonkeyPatch) -> None:
    ask, tell = Message("user", "Tell me."), Message("assistant", "Well then.")
    records = [
        Record((ask, tell), BENIGN, BENIGN, id="a"),
        Record((ask, tell), BENIGN, MALICIOUS, id="b"),
        Record((ask,), MALICIOUS, id="c"),
        Record((ask, tell), None, None, (LabelledSpan(0, 3, MALICIOUS),), id="d"),
        Record((ask, tell), id="e"),
    ]
    monkeypatch.setattr(documents, "load_records", lambda *args, **how: records)
    found = list(sound(read_documents(SourceConfig(source="alpaca"))))
    assert [d.label for d in found] == [BENIGN, MALICIOUS, MALICIOUS, MALICIOUS, None]
    assert found[0].text == "Tell me.\n\nWell then." and found[2].text == "Tell me."


def test_a_hub_data_set_is_streamed_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    read: list[int] = []

    def endless() -> Any:
        number = 0
        while True:
            read.append(number)
            yield {"text": f"document {number}"}
            number += 1

    def load_dataset(spec: str, **how: Any) -> Any:
        assert how["streaming"] is True
        return endless()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    stream = sound(read_documents(SourceConfig(source="owner/name"), streaming=True))
    assert [next(stream).text for _ in range(3)] == ["document 0", "document 1", "document 2"]
    assert len(read) <= 4


def test_round_robin_takes_one_of_each_in_turn() -> None:
    a, b = ([Document(f"{name}{i}") for i in range(n)] for name, n in (("a", 3), ("b", 1)))
    assert [d.text for d in sound(round_robin([iter(a), iter(b)]))] == ["a0", "b0", "a1", "a2"]
