"""Evaluation sets: even prefixes, files by path, and one sentence for a name that is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safealign.errors import ConfigError
from safealign.evaluation import sets
from safealign.evaluation.sets import SETS, EvaluationSet, interleave, load_set


def _file(folder: Path, name: str, n: int, words: int = 3) -> Path:
    path = folder / f"{name}.jsonl"
    turns = [{"role": "user", "content": f"{name} {i} " + "x " * words} for i in range(n)]
    rows = [json.dumps({"messages": [turn], "id": f"{name}-{i}"}) for i, turn in enumerate(turns)]
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def test_a_prefix_holds_something_of_each_source() -> None:
    assert interleave([["a1", "a2", "a3"], ["b1"], ["c1", "c2"]]) == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_a_set_gives_its_label_and_leaves_long_prompts_out(tmp_path: Path, monkeypatch) -> None:
    short, long = _file(tmp_path, "short", 3), _file(tmp_path, "long", 3, words=200)
    item = EvaluationSet("mine", "a test", "benign", ((str(short), "all"), (str(long), "all")), max_characters=100)
    monkeypatch.setitem(sets.SETS, "mine", item)
    found = load_set("mine", offline=True)
    assert [record.id for record in found] == ["short-0", "short-1", "short-2"]
    assert {record.label for record in found} == {"benign"}
    assert len(load_set("mine", 2, True)) == 2


def test_a_file_is_a_set_of_its_own(tmp_path: Path) -> None:
    assert len(load_set(str(_file(tmp_path, "mine", 4)), 3, True)) == 3


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown evaluation set 'harmfull'.*harmful"):
        load_set("harmfull")


def test_training_and_test_parts_of_the_shared_sources_do_not_meet() -> None:
    from safealign.config.composing import compose

    trained = {(source.source, source.part) for source in compose([]).data.sources}
    tested = {pair for item in SETS.values() for pair in item.sources}
    names = {source for source, _ in trained} & {source for source, _ in tested}
    assert names
    assert all((name, "train") in trained and (name, "test") in tested for name in names)
    assert not trained & tested
