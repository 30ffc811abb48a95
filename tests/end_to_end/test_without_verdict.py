"""λ = 0 beside a table: the job of a sweep that trains no verdict is measured like the others, and says what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safealign.commands import run_command
from safealign.data.records import BENIGN, MALICIOUS, Message, Record
from safealign.evaluate import main as evaluate
from safealign.evaluation import job
from safealign.evaluation.suite import Prompts
from safealign.sweep import gather
from safealign.train import main as train


def _asked(label: str, n: int = 2) -> list[Record]:
    return [Record((Message("user", f"Tell of {label} {i}"),), label, id=f"{label}-{i}") for i in range(n)]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite without any asset."""
    held = [Record((*record.messages, Message("assistant", "Fold it.")), BENIGN, BENIGN) for record in _asked(BENIGN)]
    found = Prompts(_asked(MALICIOUS), _asked(BENIGN), _asked(BENIGN, 1), held)
    monkeypatch.setattr(Prompts, "load", classmethod(lambda cls, suite, offline: found))
    monkeypatch.setattr(job, "judge_note", lambda offline=False: "the judge agrees")


def test_a_job_without_a_verdict_has_its_figures_in_the_sweeps_table(
    few: None, overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = [item for item in overrides if item != "suite=none"]
    table = ["suite=smoke", "attack.attacks=[direct]", "suite.prompts.everyday=0"]
    folder = tmp_path / "lambdas"
    argv = ["-m", *rest, *table, "safety.lambda_cls=0,0.1", f"run_dir={folder}"]
    assert run_command(train, argv=argv, after_sweep=gather) == 0
    runs = json.loads((folder / "report/sweep.json").read_text(encoding="utf-8"))["runs"]
    assert [run["state"] for run in runs] == ["complete", "complete"]
    assert all("attack_success/direct" in run["figures"] for run in runs)
    bare, guarded = (json.loads((folder / run["name"] / "report/summary.json").read_text()) for run in runs)
    assert set(bare["attack_success"]) == {"undefended", "safealign"}  # no rows that take parts away
    assert set(guarded["attack_success"]) > {"undefended", "safealign"}
    assert evaluate_again(folder / runs[0]["name"]) == 0
    printed = capsys.readouterr()
    assert "Map:" not in printed.out + printed.err  # a library's progress bar


def evaluate_again(run: Path) -> int:
    argv = [f"model={run / 'export'}", "suite=smoke", "attack.attacks=[direct]", "suite.prompts.everyday=0"]
    return run_command(evaluate, "evaluate", argv=[*argv, "offline=true"])


def test_another_export_stands_in_the_table_under_its_own_rules(
    few: None, overrides: list[str], run_dir: Path, tmp_path: Path
) -> None:
    """A head of a frozen model beside a model that was trained with one."""
    own = ["+recipe=frozen_head" if item.startswith("+recipe=") else item for item in overrides if item != "suite=none"]
    table = ["suite=smoke", "attack.attacks=[direct]", "suite.prompts.everyday=0"]
    # In fp32, since a tiny model made in code keeps other buffers in bf16 than one that is read from a file.
    assert run_command(train, argv=[*own, *table, "model.dtype=fp32", f"run_dir={tmp_path / 'detector'}"]) == 0
    alone = json.loads((tmp_path / "detector/report/summary.json").read_text(encoding="utf-8"))
    assert alone["over_refusal"]["safealign"]["interventions"]["n"] == 2
    assert alone["usefulness"]["safealign"] == alone["usefulness"]["undefended"]
    beside = f"baselines=[undefended,{tmp_path / 'detector/export'}]"
    argv = [f"model={run_dir / 'export'}", *table, beside, f"run_dir={tmp_path / 'both'}", "offline=true"]
    assert run_command(evaluate, "evaluate", argv=argv) == 0
    both = json.loads((tmp_path / "both/report/summary.json").read_text(encoding="utf-8"))
    assert {"undefended", "safealign", "detector"} <= {*both["attack_success"]}
    assert "interventions" in both["over_refusal"]["detector"]
    again = [item.replace("detector/export", "detector/nothing") for item in argv]
    assert run_command(evaluate, "evaluate", argv=again) == 2
