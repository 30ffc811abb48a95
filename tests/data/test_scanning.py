"""The quick way through large files finds exactly what the thorough way finds, row for row."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safealign.data import scanning, validation
from safealign.data.scanning import scan
from safealign.data.sources import file_rows, load_records, renamed
from safealign.data.validation import find_problems, is_sound
from safealign.errors import DataError

SOUND: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Fold a bird"}, {"role": "assistant", "content": "Take a sheet."}],
    "label": "benign",
    "response_label": "malicious",
    "id": "a",
}


def refused(text: str) -> bool:
    """A stand-in for the matcher of refusals."""
    return text.startswith("Sorry")


contents = st.sampled_from(["hi", "Sorry, no. And so on", "", " \u2003", "\ud800", "é", 3, None])
roles = st.sampled_from(["system", "user", "assistant", "wizard", "", None, ["user"]])
turns = st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), roles | contents, max_size=4)
good = st.lists(st.sampled_from(["hi", "Sorry, no.", " "]), min_size=1, max_size=5).map(
    lambda texts: [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
)
span = {"start": st.integers(-1, 4), "end": st.integers(0, 4), "label": st.just("benign")}
spans = st.lists(st.fixed_dictionaries(span))
values: dict[str, Any] = {
    "messages": good | st.lists(turns | st.none(), max_size=3) | st.sampled_from([None, "x", {}]),
    "label": st.sampled_from(["benign", "malicious", "evil", None, []]),
    "response_label": st.sampled_from(["benign", "malicious", None, 1]),
    "spans": spans | st.none(),
    "id": st.sampled_from(["a", "b", "c", None, 7]),
    "source": st.sampled_from(["s", None, 1]),
    "complete": st.sampled_from([True, False, "yes", None]),
    "learn": st.sampled_from([True, False, "yes", None]),
    "lable": st.just("benign"),
    "extra": st.integers(),
    "prompt": st.just("Fold a bird"),
}
ordinary = st.fixed_dictionaries({"messages": good})
rows = st.fixed_dictionaries({}, optional=values) | ordinary | st.sampled_from([None, 3, []])
lines = rows.map(json.dumps) | st.sampled_from(["", "  ", "{", "nonsense", "\ufeff{}", "\x00"])


def thorough(path: Path, fields: dict[str, str]) -> list[str]:
    """The problems of the long way alone."""
    with mock.patch.object(validation, "is_sound", lambda *_: False):
        return find_problems([renamed(row, fields) for row in file_rows(path)], refused)


@settings(max_examples=150)
@given(st.lists(lines, max_size=8), st.sampled_from([{}, {"messages": "talk"}, {"prompt": "extra"}]))
def test_the_quick_way_finds_what_the_thorough_way_finds(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], fields: dict[str, str]
) -> None:
    path = tmp_path_factory.mktemp("scan") / "rows.jsonl"
    path.write_bytes("\n".join(texts).encode("utf-8") + b"\n\xff\xfe\n")
    found = scan(path, fields, refused)
    assert found.problems == thorough(path, fields)
    assert found.n_problems == len(found.problems)


@settings(max_examples=100)
@given(
    st.lists(st.tuples(lines, st.sampled_from(["\n", "\r\n", "\n\n"])), max_size=8),
    st.integers(1, 40),
    st.integers(0, 4),
)
def test_parts_of_a_file_are_put_together_to_the_report_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[str, str]], size: int, kept: int
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_bytes("".join(text + end for text, end in texts).encode("utf-8") + b'{"id": "a"}')
    whole = scan(folder, refused=refused, kept=kept)
    with mock.patch.object(scanning, "PART", size):
        parts = scan(folder, refused=refused, kept=kept)
    assert (parts.rows, parts.n_problems, parts.problems) == (whole.rows, whole.n_problems, whole.problems)


@pytest.mark.parametrize("fields", [{}, {"category": "topic"}])
def test_two_processes_make_the_report_of_one(tmp_path: Path, fields: dict[str, str]) -> None:
    path = tmp_path / "mine.jsonl"
    texts = [json.dumps({**SOUND, "topic": "x", "id": f"row-{i % 190}"}) for i in range(200)]
    texts[50], texts[60], texts[199] = "nonsense", "", json.dumps({**SOUND, "lable": "evil", "topic": 3})
    path.write_text("\n".join(texts), encoding="utf-8")
    alone = scan(path, fields, refused)
    with mock.patch.object(scanning, "PART", 2000):
        shared = scan(path, fields, refused, processes=2)
    assert (shared.rows, shared.n_problems, shared.problems) == (alone.rows, alone.n_problems, alone.problems)
    assert alone.rows == 199 and alone.problems[0].startswith("mine.jsonl:51: is not JSON")


def test_what_a_helper_leaves_undone_is_done_here(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text((json.dumps(SOUND) + "\n") * 3, encoding="utf-8")
    with mock.patch.object(scanning, "PART", 10):
        found = scan(path, refused=DiesInHelpers(os.getpid()), processes=2)
    assert (found.rows, found.n_problems) == (3, 2)
    assert "without help" in caplog.text


class DiesInHelpers:
    """A matcher that ends every process but the one that made it."""

    def __init__(self, home: int) -> None:
        self.home = home

    def __call__(self, text: str) -> bool:
        if os.getpid() != self.home:
            os._exit(1)
        return False


@settings(max_examples=300)
@given(rows)
def test_a_sound_row_has_no_fault(row: Any) -> None:
    if is_sound(row, refused):
        assert list(validation._faults(row, refused)) == []


def test_ordinary_rows_take_the_quick_way() -> None:
    assert is_sound(SOUND, refused)
    assert is_sound({"messages": [{"role": "system", "content": "Be kind"}, SOUND["messages"][0]]}, refused)
    sorry = [SOUND["messages"][0], {"role": "assistant", "content": "Sorry."}]
    assert not is_sound({**SOUND, "messages": sorry}, refused)


def test_rows_are_named_and_faults_beyond_the_first_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    texts = [json.dumps({**SOUND, "id": f"row-{i % 500}"}) for i in range(1000)]
    texts[700] = json.dumps({**SOUND, "label": "evil", "id": "x"})
    path.write_text("\n".join(texts), encoding="utf-8")
    found = scan(path, kept=3)
    assert (found.rows, found.n_problems, len(found.problems)) == (1000, 500, 3)
    assert found.problems[0] == "mine.jsonl:501: id 'row-0' is used before, at mine.jsonl:1: every id must be unique"


def test_only_the_first_faults_are_kept_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("nonsense\n" * 5000, encoding="utf-8")
    found = scan(path)
    assert found.n_problems == 5000 and len(found.problems) == scanning.KEPT
    assert found.problems[-1].startswith(f"mine.jsonl:{scanning.KEPT}: is not JSON")


def test_a_folder_is_read_file_by_file_parquet_as_well(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([SOUND, {**SOUND, "id": "b"}]), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text(json.dumps(SOUND), encoding="utf-8")
    found = scan(tmp_path)
    assert found.rows == 3
    assert found.problems == ["b.jsonl:1: id 'a' is used before, at a.parquet:1: every id must be unique"]


@pytest.mark.parametrize("fields", [{}, {"category": "topic"}])
def test_what_python_will_not_parse_is_named_by_file_and_row(tmp_path: Path, fields: dict[str, str]) -> None:
    path = tmp_path / "mine.jsonl"
    deep, long = '{"x": ' + "[" * 100_000 + "]" * 100_000 + "}", '{"x": ' + "9" * 5000 + "}"
    sound = json.dumps({key: value for key, value in SOUND.items() if key != "id"} | {"topic": "x"})
    path.write_text("\n".join([sound, deep, sound, long, sound]), encoding="utf-8")
    expected = ["mine.jsonl:2: is nested too deep to be read", "mine.jsonl:4: holds a number with too many digits"]
    assert scan(path, fields).problems == thorough(path, fields) == expected
    with pytest.raises(DataError, match="2 faults"):
        load_records(path, fields=fields)
