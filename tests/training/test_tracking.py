"""What goes to Weights & Biases: names by panel, outcomes without text, one run on rank 0, and when it is online."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from rich.console import Console

from safealign.config import compose
from safealign.decoding import CalibratedThresholds, DecodingOptions
from safealign.errors import ConfigError
from safealign.evaluation.cells import Cell
from safealign.evaluation.systems import System
from safealign.training.callbacks.wandb_panels import STEP, WandbPanels, panel
from safealign.training.samples import COLUMNS, sample_rows
from safealign.training.tracking import tracked, tracking_mode

NAMES = {
    "loss": "train/loss",
    "train_loss": "train/train_loss",
    "eval_loss": "eval/loss",
    "lm/loss": "lm/loss",
    "eval_lm/loss": "lm/eval_loss",
    "eval_mean_token_accuracy": "lm/eval_mean_token_accuracy",
    "safety/loss": "safety/loss",
    "eval_safety/loss": "safety/eval_loss",
    "eval_safety/request/auroc": "request/auroc",
    "eval_safety/request/auroc/theft": "request_by_category/theft",
    "eval_safety/window/recall@0.01": "window/recall@0.01",
    "calibrated/window/accuracy": "window/calibrated_accuracy",
    "eval_rewards/chosen": "rewards/eval_chosen",
}


@pytest.fixture
def quiet() -> Console:
    return Console(quiet=True)


def test_every_metric_has_a_panel_and_no_two_share_a_name() -> None:
    assert {name: panel(name) for name in NAMES} == NAMES
    assert len(set(NAMES.values())) == len(NAMES)


def test_the_trainers_log_is_forwarded_from_rank_zero_alone() -> None:
    rows: list[dict[str, Any]] = []
    callback = WandbPanels(SimpleNamespace(log=rows.append))
    for zero in (True, False):
        state = SimpleNamespace(is_world_process_zero=zero, global_step=7)
        callback.on_log(None, state, None, {"safety/loss": 0.5})
    assert rows == [{"safety/loss": 0.5, STEP: 7}]


def _system(**options: Any) -> System:
    model = SimpleNamespace(options=DecodingOptions(), thresholds=CalibratedThresholds(query=0.0), parts=object())
    return System("safealign", model, options)  # type: ignore[arg-type]


def _cell(measure: str, p: tuple[float | None, ...] = (0.9, 0.2, 0.2, 0.9), system: str = "safealign") -> Cell:
    outcome = {"refused": (True, False, True, False), "intervened_at": (0, None, None, 7), "tokens": (9, 4, 5, 12)}
    succeeded = (False, True, False, False)
    return Cell(system, measure, ("a", "b", "c", "d"), succeeded, p=p, safety_rows=4, seconds=1.0, **outcome)  # type: ignore[arg-type]


def test_a_row_says_what_the_model_did_by_id() -> None:
    cells = [_cell("direct"), _cell("benign"), _cell("direct", system="undefended")]
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in sample_rows(_system(), cells)]
    assert [row["id"] for row in rows] == ["a", "b", "c", "d"] * 2
    did = ["refused at the start", "answered", "refused by itself", "interrupted at token 7"]
    assert [row["what the model did"] for row in rows[:4]] == did
    assert [row["verdict"] for row in rows[:4]] == ["malicious", "benign", "benign", "malicious"]
    assert [row["attack succeeded"] for row in rows] == [False, True, False, False] + [None] * 4
    assert {row["label"] for row in rows[4:]} == {"benign"}


def test_without_safety_there_is_no_verdict() -> None:
    rows = sample_rows(_system(safety=False), [_cell("direct", (None,) * 4)])
    assert {row[COLUMNS.index("verdict")] for row in rows} == {None}


@pytest.mark.parametrize(
    ("key", "overrides", "mode"),
    [
        ("", [], "offline"),
        ("k" * 40, [], "online"),
        ("k" * 40, ["offline=true"], "offline"),
        ("k" * 40, ["logger.mode=offline"], "offline"),
        ("", ["logger.mode=online"], "online"),
    ],
)
def test_it_is_online_only_when_it_can_and_may(
    key: str, overrides: list[str], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    assert tracking_mode(compose(["logger=wandb", *overrides])) == mode


@pytest.mark.parametrize(("rank", "overrides"), [("1", ["logger=wandb"]), ("0", ["logger=tensorboard"])])
def test_other_ranks_and_other_loggers_start_no_run(
    rank: str, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: Console
) -> None:
    monkeypatch.setenv("RANK", rank)
    with tracked(compose([*overrides, f"run_dir={tmp_path}"]), quiet) as tracker:
        tracker.metrics({"loss": 1.0}, 0)
        assert tracker.callbacks() == [] and wandb.run is None
    assert not list(tmp_path.iterdir())


def test_a_run_that_cannot_start_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: Console
) -> None:
    def refuse(**_: Any) -> None:
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login`")

    monkeypatch.setattr(wandb, "init", refuse)
    config = compose(["logger=wandb", "logger.mode=online", f"run_dir={tmp_path}"])
    with pytest.raises(ConfigError, match=r"No API key configured.; logger.mode=offline keeps"), tracked(config, quiet):
        pass


def test_a_run_that_breaks_is_finished_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: Console
) -> None:
    ended: list[int | None] = []
    run = SimpleNamespace(define_metric=lambda *_, **__: None, finish=lambda exit_code=0: ended.append(exit_code))
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    with pytest.raises(ZeroDivisionError), tracked(compose(["logger=wandb", f"run_dir={tmp_path}"]), quiet):
        raise ZeroDivisionError
    assert ended == [1]
