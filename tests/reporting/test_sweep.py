"""Runs side by side: what counts as whole, what is named, and that table, files and picture say the same."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from safealign.config.sweeps import JobRecord, write_plan
from safealign.errors import DataError
from safealign.evaluation.metrics.rates import Rate
from safealign.files import write_text
from safealign.reporting.summary import Measure, Summary
from safealign.reporting.sweep_picture import along, sweep_picture
from safealign.reporting.sweep_table import SweepTable

DIRECT = Measure("direct", "direct", "rate")


def _run(root: Path, name: str, *, direct: int | None = 3, values: dict[str, str] | None = None, **config: Any) -> Path:
    """A run directory as training leaves it; `direct`: attacks of 20 that succeed, None without a report."""
    folder = root / name
    settings = {"name": "x", "run_dir": str(folder), "suite": {"name": "quick"}, **config}
    write_text(folder / "config.yaml", json.dumps(settings))
    write_text(folder / "metrics.jsonl", '{"step": 2, "eval_lm/loss": 1.5}\n{"step": 4, "eval_lm/loss": 1.25}\n')
    write_text(folder / "export/manifest.json", "{}")
    if direct is not None:
        summary = Summary("x")
        summary.add_system("safealign", "safealign")
        summary.put("safealign", "attack_success", DIRECT, Rate(direct, 20))
        summary.write(folder / "report")
    if values is not None:
        JobRecord.begin(folder, values).end(folder)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """λ × placement: one run of each fate."""
    jobs = {f"{lam}-{place}": {"lambda": lam, "place": place} for lam in ("0.1", "1") for place in ("a", "b", "c")}
    write_plan(tmp_path, jobs)
    for index, (name, values) in enumerate(jobs.items()):
        if index < 5:
            _run(tmp_path, name, direct=index, values=values)
    names = list(jobs)
    JobRecord.begin(tmp_path / names[1], jobs[names[1]]).end(tmp_path / names[1], "out of memory")
    JobRecord.begin(tmp_path / names[2], jobs[names[2]])  # begun again, and killed
    JobRecord.begin(tmp_path / names[3], jobs[names[3]]).end(tmp_path / names[3])
    return tmp_path


def test_every_planned_run_is_there_with_its_fate(root: Path) -> None:
    table = SweepTable.gather(root)
    fates = {run.name: (run.state, run.note) for run in table.runs}
    assert fates == {
        "0.1-a": ("complete", ""),
        "0.1-b": ("failed", "out of memory"),
        "0.1-c": ("incomplete", "stopped, or still running; last logged step 4"),
        "1-a": ("complete", "attempt 2 in this folder"),
        "1-b": ("complete", ""),
        "1-c": ("incomplete", "never started"),
    }
    assert [line.split(":")[0] for line in table.missing] == ["0.1-b", "0.1-c", "1-c"]


def test_what_an_earlier_attempt_left_is_not_shown(root: Path) -> None:
    assert all(not run.cells for run in SweepTable.gather(root).runs if run.state != "complete")


@pytest.mark.parametrize(
    ("missing", "state"),
    [("export/manifest.json", "no export; last logged step 4"), ("report/summary.json", "exported, not evaluated")],
)
def test_without_a_record_the_files_decide(tmp_path: Path, missing: str, state: str) -> None:
    (_run(tmp_path, "one") / missing).unlink()
    _run(tmp_path, "two", direct=None, suite={"name": "none"})
    _run(tmp_path, "without", direct=None, objective={"name": "pretraining"})
    found = {run.name: (run.state, run.note) for run in SweepTable.gather(tmp_path).runs}
    assert found == {"one": ("incomplete", state), "two": ("complete", ""), "without": ("complete", "")}


def test_runs_started_one_by_one_are_told_apart_by_their_configs(tmp_path: Path) -> None:
    for seed in (0, 1):
        _run(tmp_path, f"run{seed}", seed=seed, trainer={"epochs": 3})
    (tmp_path / "notes").mkdir()
    table = SweepTable.gather(tmp_path)
    assert [run.values for run in table.runs] == [{"seed": "0"}, {"seed": "1"}]


def test_the_metrics_of_a_run_begun_again_are_those_of_its_last_attempt(tmp_path: Path) -> None:
    folder = _run(tmp_path, "one", values={"seed": "0"})
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"step": 2, "eval_safety/loss": 0.5}\n{"step": 4, "eval_l')
    (run,) = SweepTable.gather(tmp_path).runs
    assert run.cells["eval_safety/loss"].value == 0.5 and "eval_lm/loss" not in run.cells
    assert run.note == "1 line(s) of metrics.jsonl cannot be read"


def test_a_broken_summary_and_an_unknown_system_are_said(tmp_path: Path) -> None:
    write_text(_run(tmp_path, "one") / "report/summary.json", '{"title": ')
    _run(tmp_path, "two")
    notes = [run.note for run in SweepTable.gather(tmp_path, "plain_sft").runs]
    assert "cannot be read" in notes[0] and "no row 'plain_sft'" in notes[1] and "safealign" in notes[1]


def test_a_folder_without_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no run"):
        SweepTable.gather(tmp_path / "nothing")


def test_terminal_json_and_csv_agree_and_rates_have_intervals(root: Path) -> None:
    table = SweepTable.gather(root)
    paths = table.write(root / "report")
    plain = json.loads(paths[0].read_text(encoding="utf-8"))
    cell = plain["runs"][0]["figures"]["attack_success/direct"]
    low, high = Rate(0, 20).interval
    assert (cell["value"], cell["n"], cell["k"], cell["interval"]) == (0.0, 20, 0, [low, high])
    rows = list(csv.DictReader(io.StringIO(paths[1].read_text(encoding="utf-8"))))
    assert [row["run"] for row in rows] == [run["name"] for run in plain["runs"]]
    assert float(rows[0]["attack_success/direct_high"]) == high and rows[0]["eval_lm/loss"] == "1.25"
    assert rows[1]["state"] == "failed" and rows[1]["attack_success/direct"] == ""
    console = Console(record=True, width=140, file=io.StringIO())
    table.show(console)
    text = console.export_text()
    assert "3 of 6 runs complete" in text and "out of memory" in text and "never started" in text
    assert "0.0 % (0/20; 0.0–16.1)" in " ".join(text.split())


def test_the_picture_shows_every_complete_run_and_names_the_others(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, list[float], list[float]]] = []
    titles: list[str] = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.errorbar",
        lambda self, x, y, **how: drawn.append((how["label"], list(x), list(y))),
    )
    monkeypatch.setattr("matplotlib.figure.Figure.suptitle", lambda self, text, **_: titles.append(text))
    table = SweepTable.gather(root)
    assert along(table) == "lambda"
    assert sweep_picture(table, root / "report/sweep.png") == root / "report/sweep.png"
    attack = {label: [round(value) for value in y] for label, _, y in drawn[:2]}
    assert attack == {"place=a": [0, 15], "place=b": [20]}
    assert [[round(at) for at in x] for _, x, _ in drawn[:2]] == [[0, 1], [1]]
    assert all(name in titles[0] for name in ("0.1-b: failed", "0.1-c: incomplete", "1-c: incomplete"))


def test_the_picture_is_written(root: Path) -> None:
    path = sweep_picture(SweepTable.gather(root), root / "sweep.png")
    assert path is not None and path.read_bytes().startswith(b"\x89PNG")


def test_no_complete_run_no_picture(tmp_path: Path) -> None:
    write_plan(tmp_path, {"a": {"seed": "1"}})
    assert sweep_picture(SweepTable.gather(tmp_path), tmp_path / "sweep.png") is None
