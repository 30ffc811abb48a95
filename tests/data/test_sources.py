"""Sources: files, hub and known data sets give the same records; faults are reported for all rows at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from safealign.data import sources
from safealign.data.readers import READERS, pair_of
from safealign.data.records import Message, Record
from safealign.data.sources import known_sources, load_records
from safealign.errors import AssetError, DataError

ROWS = [
    {"messages": [{"role": "user", "content": "Name a bird"}], "label": "benign", "id": "a"},
    {
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
        "response_label": "benign",
        "spans": [{"start": 0, "end": 5, "label": "benign"}],
    },
]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def without_place(records: list[Record]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.to_dict().items() if k != "source"} for record in records]


def test_jsonl_and_parquet_agree(tmp_path: Path) -> None:
    columns = dict.fromkeys(key for row in ROWS for key in row)  # a table has every column in every row
    table = pyarrow.Table.from_pylist([{**columns, **row} for row in ROWS])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    from_jsonl = load_records(write_jsonl(tmp_path / "rows.jsonl", ROWS))
    from_parquet = load_records(tmp_path / "rows.parquet")
    assert without_place(from_jsonl) == without_place(from_parquet) == ROWS
    assert [record.where for record in from_jsonl] == ["rows.jsonl:1", "rows.jsonl:2"]
    assert {record.source for record in from_jsonl} == {"rows"}


def test_folder_is_all_its_files(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_jsonl(tmp_path / f"{name}.jsonl", [ROWS[1]])
    assert [record.where for record in load_records(tmp_path)] == ["a.jsonl:1", "b.jsonl:1"]


def test_every_bad_row_is_reported_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    lines = [
        json.dumps(ROWS[0]).encode(),
        b"{broken",
        b"",
        b"\xff\xfe",
        json.dumps({"label": "odd"}).encode(),
    ]
    path.write_bytes(b"\n".join([*lines, json.dumps(ROWS[0]).encode()]))
    with pytest.raises(DataError) as caught:
        load_records(path)
    assert [problem.split(":")[1] for problem in caught.value.problems] == ["2", "4", "5", "5", "6"]


def test_label_fills_gaps_only(tmp_path: Path) -> None:
    records = load_records(write_jsonl(tmp_path / "rows.jsonl", ROWS), label="malicious")
    assert [record.label for record in records] == ["benign", "malicious"]


def test_fields_rename_columns_and_other_spellings_of_turns(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    shared = load_records(write_jsonl(tmp_path / "a.jsonl", [{"talk": talk}]), fields={"messages": "talk"})
    columns = {"prompt": "q", "response": "a"}
    asked = load_records(write_jsonl(tmp_path / "b.jsonl", [{"q": "Hi", "a": "Hello"}]), fields=columns)
    assert shared[0].messages == asked[0].messages == (Message("user", "Hi"), Message("assistant", "Hello"))
    with pytest.raises(DataError, match="has no column 'nope'; it has messages"):
        load_records(write_jsonl(tmp_path / "c.jsonl", [ROWS[1]]), fields={"messages": "nope"})


def test_refusal_check_is_handed_on(tmp_path: Path) -> None:
    row = {**ROWS[1], "response_label": "malicious", "spans": []}
    with pytest.raises(DataError, match="it is a refusal"):
        load_records(write_jsonl(tmp_path / "rows.jsonl", [row]), refused=lambda text: True)


def test_hub_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, split: str, download_config: Any) -> list[dict[str, Any]]:
        if name != "owner/chats":
            raise ConnectionError("no route\nmore")
        return [{**row, "category": None} for row in ROWS]

    fake = SimpleNamespace(load_dataset=load_dataset, DownloadConfig=lambda **options: options)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    records = load_records("owner/chats", split="test")
    assert without_place(records) == ROWS
    assert records[1].where == "owner/chats[test]:2" and records[1].source == "owner/chats"
    with pytest.raises(AssetError, match=r"'owner/none' \(split 'train'\) could not be loaded.*no route"):
        load_records("owner/none")


@pytest.mark.parametrize(
    ("spec", "message"),
    [("advbenhc", "did you mean 'advbench'"), ("nope/x.jsonl", "no file and no data set")],
)
def test_unknown_source(spec: str, message: str) -> None:
    with pytest.raises(AssetError, match=message):
        load_records(spec)


def test_unknown_ending_and_damaged_parquet(tmp_path: Path) -> None:
    for name, message in (("x.txt", "unknown ending"), ("x.parquet", "not a readable Parquet file")):
        (tmp_path / name).write_text("hello")
        with pytest.raises(DataError, match=message):
            load_records(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no .jsonl or .parquet"):
        load_records(tmp_path / "empty")


FILES: dict[str, tuple[str, Any]] = {
    "advbench": ("x.csv", "goal,target\nTease the cat,\"Sure, here is\"\n"),
    "uncensorbench": ("x.json", {"prompts": [{
        "id": "c1", "topic": "cats", "prompt": "Tease it",
        "censored_response": "No.", "uncensored_response": "So.",
    }]}),
    "alpaca": ("x.json", [
        {"instruction": "Sort", "input": "b a", "output": "a b"},
        {"instruction": "Say", "input": "", "output": ""},
    ]),
    "v1_sft": ("x.jsonl", [{"messages": [
        {"role": "user", "content": [{"type": "text", "value": "hi"}]},
        {"role": "assistant", "content": [{"type": "text", "value": "I am {{name}}"}]},
    ]}]),
    "dpo": ("x.json", [{
        "conversations": [{"from": "system", "value": ""}, {"from": "human", "value": "hi"}],
        "chosen": {"from": "gpt", "value": "hello"}, "rejected": {"from": "gpt", "value": "no"},
    }]),
    "kto": ("x.json", [{"label": good, "messages": [
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
    ]} for good in (True, False)]),
    "gsm8k": ("x.json", [{"text_clean": "1+1?", "chain_of_thought": "1+1=<<1+1=2>>2\n#### 2"}]),
    "matched_pairs": ("x.jsonl", [
        {"id": f"cat_care_{kind[0]}3", "input": kind, "metadata": {"type": kind}}
        for kind in ("harmful", "benign")
    ]),
    "chitchat": ("x.json", {"id1": {"messages": [[{"text": "hi"}, {"text": "you"}], [{"text": "yo"}]]},
                            "id2": {"messages": []}}),
}  # fmt: skip
EXPECTED: dict[str, list[tuple[tuple[str, ...], str | None, str | None]]] = {
    "advbench": [(("Tease the cat",), "malicious", None)],
    "advbench_openings": [(("Tease the cat", "Sure, here is"), "malicious", "malicious")],
    "uncensorbench": [(("Tease it", "So."), "malicious", "malicious")],
    "uncensorbench_refusals": [(("Tease it", "No."), "malicious", "benign")],
    "alpaca": [(("Sort\nb a", "a b"), "benign", "benign"), (("Say",), "benign", None)],
    "v1_sft": [(("hi",), "benign", None)],
    "dpo": [(("hi", "hello"), "benign", "benign")],
    "kto": [(("hi", "hello"), "benign", "benign"), (("hi",), "benign", None)],
    "gsm8k": [(("1+1?", "1+1=2\nThe answer is 2"), "benign", "benign")],
    "matched_pairs": [(("harmful",), "malicious", None), (("benign",), "benign", None)],
    "chitchat": [(("hi\nyou", "yo"), None, None)],
}


def give(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.setattr(sources, "data_path", lambda name, offline=None: path)


def write(tmp_path: Path, asset: str) -> Path:
    name, content = FILES[asset]
    if name.endswith(".jsonl"):
        return write_jsonl(tmp_path / name, content)
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


@pytest.mark.parametrize("name", EXPECTED)
def test_readers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, write(tmp_path, READERS[name].asset))
    records = load_records(name)
    found = [(tuple(turn.content for turn in r.messages), r.label, r.response_label) for r in records]
    assert found == EXPECTED[name]
    assert all(record.source == name and record.where and record.id for record in records)


def test_harmbench_takes_standard_behaviours_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
    (tmp_path / "x.csv").write_text(head + "Tease it,standard,cats,,,b1\nSing it,copyright,songs,,,b2\n")
    give(monkeypatch, tmp_path / "x.csv")
    assert [(r.id, r.category) for r in load_records("harmbench_test")] == [("harmbench/b1", "cats")]


def test_folder_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, tmp_path)
    pair = [
        {"id": "p1", "domain": "cats", "text": "Feed?\n\nFish.\n\nMilk.", "harmful_version": "Tease?\n\nSo."}
    ]
    (tmp_path / "a.json").write_text(json.dumps(pair))
    twins = load_records("rho_refusal_pairs")
    assert [record.response for record in twins] == ["Fish.\n\nMilk.", "So."]
    assert {pair_of(record) for record in twins} == {"rho_refusal_pairs/p1"}
    (tmp_path / "a.csv").write_text("# v=1\n# note\nobjective,assistant_response,human_score\nq,a,1\nq,b,0\n")
    assert [record.category for record in load_records("refusal_labels")] == ["refused", "answered"]
    (tmp_path / "harms.prompt").write_text("seeds:\n  - value: Tease it\n")
    (tmp_path / "fairness_yes_no.prompt").write_text("seeds:\n  - value: Is art good?\n")
    assert [(r.category, r.label) for r in load_records("airt")] == [
        ("fairness_yes_no", "benign"),
        ("harms", "malicious"),
    ]


def test_file_of_another_format_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, write_jsonl(tmp_path / "x.jsonl", [{"other": 1}]))
    with pytest.raises(DataError, match="not in the format of matched_pairs"):
        load_records("matched_pairs")


def test_pair_of_a_record_without_twin() -> None:
    assert pair_of(Record((), id="plain")) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(known_sources()))
def test_real_data_set(name: str) -> None:
    try:
        records = load_records(name, offline=True)
    except AssetError as error:
        pytest.skip(str(error))
    assert len(records) >= 40
    assert len({record.id for record in records}) == len(records)
