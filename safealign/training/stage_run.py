"""One stage of training as a run has it: tracked, saved, gone on with; and what the stages came to in the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from safealign.config.roots import TrainConfig
from safealign.training.checkpoints.keeper import Keeper
from safealign.training.checkpoints.resuming import enable, train_stage
from safealign.training.totals import StageTotals, stage_totals, write_totals
from safealign.training.tracking import Tracker


def run_stage(
    trainer: Any, config: TrainConfig, stage: str, first_step: int, tracker: Tracker | None, keeper: Keeper | None
) -> StageTotals:
    """Trains a stage that begins at `first_step` of the run, or what is left of it; raises as `train_stage` does."""
    for callback in (tracker or Tracker()).callbacks(first_step):
        trainer.add_callback(callback)
    found = None
    if keeper is not None:
        found = keeper.start_of(stage)
        enable(trainer, keeper, stage, first_step)
    began = time.monotonic()
    train_stage(trainer, found, config.seed)
    return stage_totals(trainer, stage, time.monotonic() - began)


def sum_up(
    config: TrainConfig, trainer: Any, totals: Sequence[StageTotals], keeper: Keeper | None, console: Console
) -> None:
    """Prints and keeps the totals of a run, on rank 0."""
    if keeper is None or not trainer.accelerator.is_main_process:
        return
    first = next((stage.first_step_at for stage in totals if stage.first_step_at is not None), None)
    waited = None if first is None else first - keeper.started
    resumed = None if keeper.resumed is None else keeper.resumed.path
    for line in write_totals(Path(config.run_dir), totals, resumed, waited):
        console.print(line, highlight=False)


def watch(trainer: Any, config: TrainConfig) -> None:
    """What a trainer does about numbers that are not finite."""
    trainer.on_nonfinite, trainer.run_dir = config.trainer.on_nonfinite, Path(config.run_dir)
