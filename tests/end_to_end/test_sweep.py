"""A sweep over λ on a tiny random model ends with a run directory per value, one table and one picture."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from safealign.commands import run_command
from safealign.config.sweeps import JobRecord
from safealign.sweep import gather
from safealign.sweep import main as sweep
from safealign.train import main as train

NAMES = ["safety.lambda_cls-0.1", "safety.lambda_cls-1"]


@pytest.fixture(scope="module")
def root(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sweep")
    folder = place / "lambdas"
    argv = ["-m", *overrides, "safety.lambda_cls=0.1,1", f"run_dir={folder}", "logger=wandb", "logger.mode=offline"]
    homes = {f"WANDB_{name}_DIR": str(place / name.lower()) for name in ("DATA", "CACHE", "CONFIG")}
    with mock.patch.dict(os.environ, homes):
        assert run_command(train, argv=argv, after_sweep=gather) == 0
    return folder


def test_each_value_has_a_whole_run_and_the_table_has_both(root: Path) -> None:
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == ["report", *NAMES]
    for name, weight in zip(NAMES, (0.1, 1.0), strict=True):
        assert (root / name / "export/manifest.json").is_file()
        assert f"lambda_cls: {weight}" in (root / name / "config.yaml").read_text(encoding="utf-8")
    rows = list(csv.DictReader((root / "report/sweep.csv").open(encoding="utf-8")))
    assert [(row["safety.lambda_cls"], row["state"]) for row in rows] == [("0.1", "complete"), ("1", "complete")]
    assert rows[0]["eval_safety/loss"] != rows[1]["eval_safety/loss"]
    assert (root / "report/sweep.png").read_bytes().startswith(b"\x89PNG")


def test_each_job_has_a_wandb_run_of_its_own_named_after_it(root: Path) -> None:
    for name, weight in zip(NAMES, (0.1, 1), strict=True):
        (run,) = (root / name).glob("wandb/offline-run-*")
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(run)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        assert name in json.dumps(found) and found["config"]["safety"]["lambda_cls"] == weight
        assert found["summary"]["train/global_step"] == 4


def test_a_run_that_failed_or_was_cut_off_later_is_named(root: Path) -> None:
    first, second = (root / name for name in NAMES)
    JobRecord.begin(first, {"safety.lambda_cls": "0.1"})
    JobRecord.begin(second, {"safety.lambda_cls": "1"}).end(second, "the disk is full")
    assert run_command(sweep, "sweep", argv=[f"folder={root}"]) == 0
    runs = json.loads((root / "report/sweep.json").read_text(encoding="utf-8"))["runs"]
    assert [(run["name"], run["state"]) for run in runs] == list(zip(NAMES, ("incomplete", "failed"), strict=True))
    assert "last logged step 4" in runs[0]["note"] and runs[1]["note"] == "the disk is full"


def test_a_folder_that_is_no_sweep_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(sweep, "sweep", argv=[f"folder={tmp_path}"]) == 2
    assert "holds no run" in capsys.readouterr().err
