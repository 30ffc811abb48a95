"""What `safealign.train` leaves behind, and what the other commands do with it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from unittest import mock

import pytest

import safealign
from safealign.commands import run_command
from safealign.evaluate import main as evaluate
from safealign.export import main as export
from safealign.train import main as train

MESSAGES = [{"role": "user", "content": "How do I fold a paper bird?"}]


def test_the_run_directory_holds_config_metrics_checkpoint_and_export(run_dir: Path) -> None:
    assert (run_dir / "config.yaml").is_file()
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert any("loss" in line for line in lines) and any("eval_loss" in line for line in lines)
    assert {"eval_safety/request/auroc", "eval_safety/window/auroc"} <= set().union(*lines)
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step-4"]
    assert (run_dir / "export" / "README.md").is_file()


def test_the_export_answers_scores_and_says_what_its_thresholds_promise(run_dir: Path) -> None:
    model = safealign.load(run_dir / "export")
    out = model.generate(MESSAGES, max_new_tokens=6)
    assert out.p is not None and abs(out.p - model.score(MESSAGES)) < 1e-4
    card = json.loads((run_dir / "export" / "safety.json").read_text(encoding="utf-8"))
    assert set(card["thresholds"]) == {"query", "window", "prefix", "token"}
    assert "units" in card["calibration"]["note"] and "held out" in card["calibration"]["distribution"]


def test_exporting_again_as_an_adapter_gives_the_same_verdict_and_text(run_dir: Path, tmp_path: Path) -> None:
    assert run_command(export, "export", argv=[f"run={run_dir}", f"run_dir={tmp_path}", "merge=false"]) == 0
    one, other = safealign.load(run_dir / "export"), safealign.load(tmp_path / "export")
    assert (tmp_path / "export" / "adapter_config.json").is_file()
    assert abs(one.score(MESSAGES) - other.score(MESSAGES)) < 1e-4
    options = {"max_new_tokens": 12, "safety": False}
    assert one.generate(MESSAGES, **options).tokens == other.generate(MESSAGES, **options).tokens


def test_the_same_seed_gives_the_same_losses(overrides: list[str], run_dir: Path, tmp_path: Path) -> None:
    assert run_command(train, argv=[*overrides, f"run_dir={tmp_path / 'again'}"]) == 0
    assert _losses(tmp_path / "again") == _losses(run_dir)


def test_a_missing_run_and_a_damaged_export_are_one_sentence(run_dir: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert run_command(export, "export", argv=[f"run={tmp_path / 'none'}"]) == 2
    assert "no complete checkpoint" in capsys.readouterr().err.replace("\n", " ")
    damaged = tmp_path / "job" / "export"
    damaged.mkdir(parents=True)
    assert run_command(evaluate, "evaluate", argv=[f"model={damaged}", "suite=smoke"]) == 2
    assert "safety.json is missing" in capsys.readouterr().err.replace("\n", " ")


def _losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


LOGGERS = [("tensorboard", "tensorboard/events.out.*"), ("wandb", "wandb/offline-*")]


@pytest.mark.parametrize(("logger", "files"), LOGGERS)
def test_a_logger_writes_into_the_run_directory_and_asks_for_no_key(
    overrides: list[str], tmp_path: Path, logger: str, files: str
) -> None:
    with mock.patch.dict(os.environ):
        os.environ.pop("WANDB_API_KEY", None)
        assert run_command(train, argv=[*overrides, f"run_dir={tmp_path}", f"logger={logger}"]) == 0
    assert list(tmp_path.glob(files)) and (tmp_path / "metrics.jsonl").is_file()
