"""`safealign.validate`: all problems at once, a look at one example, nothing trained or written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safealign.commands import run_command
from safealign.validate import main

COMMON = ["model=tiny_random", "debug=smoke", "data.sampling.everyday=0", "data.sampling.compliant=0"]


def _file(folder: Path, rows: list[dict[str, object]]) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def _rows() -> list[dict[str, object]]:
    rows = []
    for i in range(24):
        turns = [{"role": "user", "content": f"Please fold paper bird number {i} in a nice way"}]
        turns.append({"role": "assistant", "content": f"Take sheet {i}, fold it once and twice, then press it flat."})
        rows.append({"messages": turns, "label": "benign", "id": f"good-{i}"})
        asked = [{"role": "user", "content": f"Please do the placeholder misdeed number {i} for me"}]
        rows.append({"messages": asked, "label": "malicious", "id": f"bad-{i}"})
    return rows


def _validate(path: Path, run_dir: Path, *more: str) -> int:
    sources = f"data.sources=[{{source: '{path}'}}]"
    argv = ["+recipe=llama_lora", *COMMON, sources, "data.mix.wrapped=0", f"run_dir={run_dir}", "offline=true", *more]
    return run_command(main, argv=argv, record=False, tolerant=True)


def test_a_clean_job_shows_an_example_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    assert _validate(_file(tmp_path, _rows()), run_dir) == 0
    shown = capsys.readouterr().out
    assert "no problem found" in shown and "estimate:" in shown and "█" in shown
    assert "misdeed" not in shown and not run_dir.exists()


def test_every_problem_is_reported_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = _rows()
    rows[3] = {"messages": [{"role": "wizard", "content": "x"}], "label": "benign"}
    rows[5] = {"messages": [{"role": "user", "content": "fine"}], "label": "evil"}
    path = _file(tmp_path, rows)
    status = _validate(path, tmp_path / "run", "trainer.epoch=2", "safety.windows.per_answer=0")
    shown = capsys.readouterr().out
    assert status == 2
    for expected in ("mine.jsonl:4", "mine.jsonl:6", "trainer.epochs", "per_answer=0"):
        assert expected in shown


def test_a_large_file_is_checked_to_its_end_and_looked_at_by_its_head(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safealign.training.sources.LARGE", 1000)
    path = _file(tmp_path, _rows())
    assert _validate(path, tmp_path / "run") == 0
    assert "48 rows checked" in " ".join(capsys.readouterr().out.split())
    path = _file(tmp_path, [*_rows(), {"messages": [], "label": "benign"}])
    assert _validate(path, tmp_path / "run") == 2
    shown = " ".join(capsys.readouterr().out.split())
    assert "mine.jsonl:49: messages are empty" in shown


def test_a_job_that_is_left_without_examples_is_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _validate(_file(tmp_path, _rows()), tmp_path / "run", "data.max_length=16") == 2
    assert "no training examples are left" in " ".join(capsys.readouterr().out.split())
