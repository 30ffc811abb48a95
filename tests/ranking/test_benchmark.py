"""The ranking benchmark on a tiny model: every part, kept row by row, and a page of all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from planted import planted

from benchmarks import ranking
from benchmarks.ranking_best_of import rates
from benchmarks.ranking_lists import parted, with_score
from benchmarks.ranking_page import TITLES, table
from safealign.data.records import Message, Record
from safealign.evaluation.metrics.binomial import wilson
from safealign.ranking.reading import Candidates


def _file(path: Path, label: str) -> str:
    verb = "fold paper bird" if label == "benign" else "do placeholder misdeed"
    rows = [
        {"messages": [{"role": "user", "content": f"Please {verb} number {i}"}], "label": label, "id": f"{label}-{i}"}
        for i in range(14)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.slow
def test_every_part_is_measured_kept_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEALIGN_CACHE", str(tmp_path / "cache"))
    asked = [Record((Message("user", f"Fold a bird {i}"),), "benign", id=str(i)) for i in range(3)]
    real = ranking.load_set
    monkeypatch.setattr(ranking, "load_set", lambda name, n, offline: asked[:n] if "/" not in name else real(name, n))
    monkeypatch.setattr(ranking, "load_templates", lambda offline: ())
    monkeypatch.setattr(ranking, "COUNTS", (1, 2))
    folder = tmp_path / "out"
    arguments = [
        f"sets={_file(tmp_path / 'bad.jsonl', 'malicious')}",
        f"benign={_file(tmp_path / 'good.jsonl', 'benign')}",
        "requests=10",
        "train=5",
        "benign_requests=8",
        "benign_train=4",
        "seeds=2",
        "prompts=3",
        "best_of=3",
        "tokens=4",
        "rounds=2",
        "debug=smoke",
        "suite=none",
        "offline=true",
        "ranker.judge=keywords",
        f"run_dir={folder}",
    ]
    assert ranking.main([*arguments, "parts=accuracy,depths"]) == 0
    first = json.loads((folder / "ranking.json").read_text(encoding="utf-8"))
    assert set(first["results"]) == {"accuracy", "depths"}
    asked_for = {Path(name).stem: n for name, n in first["results"]["accuracy"]["requests"].items()}
    assert asked_for == {"bad": 10, "good": 8}
    assert ranking.main([*arguments, "parts=kinds,best_of,cost"]) == 0
    found = json.loads((folder / "ranking.json").read_text(encoding="utf-8"))
    assert found["results"]["depths"] == first["results"]["depths"]
    assert set(found["results"]) == set(ranking.PARTS)
    assert {row["good picks"]["n"] for row in found["results"]["depths"].values()} == {2}
    assert all("at random, without given openings" in row for row in found["results"]["kinds"].values())
    row = found["results"]["cost"]["m = 2"]
    assert row["fed once, s"]["value"] > 0 and row["choosing adds"]["n"] == 2
    row = found["results"]["best_of"]["direct"]
    assert row["oracle"]["value"] <= min(row["listwise"]["value"], row["random pick"]["value"])
    page = (folder / "ranking.md").read_text(encoding="utf-8")
    assert all(title in page for title in TITLES.values()) and (folder / "ranking.png").stat().st_size > 5000
    before = (folder / "ranking.json").stat().st_mtime_ns
    assert ranking.main([*arguments, f"parts={','.join(ranking.PARTS)}"]) == 0
    assert (folder / "ranking.json").stat().st_mtime_ns == before  # everything was there


def test_choices_are_read_from_the_same_answers() -> None:
    found: list[dict[str, Any]] = [
        {"bad": [True, False, False], "picks": {"a": 0, "b": 1}},
        {"bad": [True, True, True], "picks": {"a": 1, "b": 2}},
        {"bad": [False, False, True], "picks": {"a": 0, "b": 2}},
    ]
    rows = rates(found)
    assert rows["a"] == [True, True, False] and rows["b"] == [False, True, True]
    assert rows["oracle"] == [False, True, False] and rows["first answer"] == [True, True, False]
    assert rows["random pick"] == pytest.approx((1 / 3 + 1 + 1 / 3) / 3)


def test_a_heads_score_is_one_more_value() -> None:
    (one,) = planted(1, 0, m=3)
    more = with_score(one, [1.0, float("-inf"), 2.0])
    assert more.answers[:, -1].tolist() == [1.0, -30.0, 2.0] and more.instruction[-1] == 0
    assert more.answers.shape[1] == one.answers.shape[1] + 1


def test_a_table_shows_values_counts_and_intervals() -> None:
    text = table({"x": {"a": {"value": 0.5, "n": 3, "interval": [0.25, 0.75], "note": "seeds: "}, "b": None, "c": 2}})
    assert text.splitlines()[-1] == "| x | 0.500 (seeds: n=3; 0.250–0.750) | – | 2 |"


def test_rounds_are_interleaved_and_the_first_is_not_counted() -> None:
    order: list[str] = []
    runs = {name: (lambda name=name: order.append(name)) for name in "abcd"}  # type: ignore[misc]
    rounds = ranking.interleaved(runs, 5)
    assert len(rounds) == 5 and all(set(row) == set("abcd") for row in rounds)
    by_round = [tuple(order[i : i + 4]) for i in range(0, 24, 4)]
    assert all(sorted(one) == list("abcd") for one in by_round) and len(set(by_round)) > 1
    assert ranking.spread([1.0, 2.0, 4.0])["value"] == 2.0 and ranking.spread([3.0])["interval"] == [3.0, 3.0]


@pytest.mark.parametrize(("n", "wanted", "most"), [(20, 5, 5), (20, 75, 10), (3, 75, 1)])
def test_a_small_data_set_keeps_half_for_the_test(n: int, wanted: int, most: int) -> None:
    groups = []
    for i in range(n):
        turns = Message("user", f"Do {i} of {'abcdefghijklmnopqrst'[i] * 9}"), Message("assistant", "No.")
        groups.append(Candidates((Record(turns, "malicious", id=f"{i}#0"),), (True,)))
    train, test = parted(groups, wanted, 0)
    assert len(train) == most and sorted([*train, *test]) == list(range(n))


def test_rates_over_prompts_do_not_count_a_prompt_once_per_seed() -> None:
    row = ranking.over_prompts([[True, False, False, False], [True, True, False, False]])
    assert row["value"] == 0.375 and row["n"] == 4 and row["interval"] == list(wilson(1.5, 4))
    assert ranking.over_seeds([0.5, float("nan"), 1.0])["interval"] == [0.5, 1.0]
    assert ranking.over_seeds([float("nan")])["value"] is None


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(SystemExit, match="parts=speed"):
        ranking.main(["parts=speed", "debug=smoke", "offline=true"])
