"""Weights & Biases beside `metrics.jsonl`: one run on rank 0, from before the data to after the table.

No text of any example is ever handed to it: what it gets are numbers, ids, pictures of numbers and the config.
Console output, code, the git remote and weights stay at home.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from safealign.commands import is_main_process
from safealign.config.roots import TrainConfig
from safealign.errors import ConfigError
from safealign.training.callbacks.wandb_panels import STEP, WandbPanels, panel


class Tracker:
    """Takes what a run has to show and shows it nowhere: for other loggers, other ranks and baselines."""

    def callbacks(self, first_step: int = 0) -> list[Any]:
        """Callbacks for the trainer of a stage that begins at `first_step` of the run."""
        return []

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Adds to the run's config."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Logs metrics, by their names in `metrics.jsonl`, at a step of the training."""

    def figures(self, values: Mapping[str, float]) -> None:
        """Final figures: what runs are compared by."""

    def picture(self, name: str, path: Path) -> None:
        """Shows a PNG."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Shows a table."""


class WandbTracker(Tracker):
    """Shows everything in one W&B run."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def callbacks(self, first_step: int = 0) -> list[Any]:
        """The callback that forwards the trainer's log."""
        return [WandbPanels(self.run, first_step)]

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Adds to the run's config."""
        self.run.config.update(dict(facts))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Logs metrics in their panels at a step of the training."""
        self.run.log({panel(name): value for name, value in values.items()} | {STEP: step})

    def figures(self, values: Mapping[str, float]) -> None:
        """Writes into the run's summary."""
        self.run.summary.update(dict(values))

    def picture(self, name: str, path: Path) -> None:
        """Logs an image."""
        import wandb

        self.run.log({name: wandb.Image(str(path))})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Logs a `wandb.Table`; its columns may mix numbers and nothing."""
        import wandb

        self.run.log(
            {name: wandb.Table(columns=list(columns), data=[list(row) for row in rows], allow_mixed_types=True)}
        )


@contextmanager
def tracked(config: TrainConfig, console: Console) -> Iterator[Tracker]:
    """The tracker of one training run; the W&B run is finished, as failed if need be, when the block is left.

    Raises ConfigError when W&B cannot be reached or refuses the key.
    """
    if config.logger.name != "wandb" or not is_main_process():
        yield Tracker()
        return
    run = _start(config)
    try:
        yield WandbTracker(run)
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()
    if run.offline:
        folder = Path(run.dir).parent
        console.print(f"W&B:     offline; upload it with wandb sync {_short(folder)}", highlight=False, soft_wrap=True)


def tracking_mode(config: TrainConfig) -> str:
    """`online` or `offline`; `auto` is online only with a key in the environment and without `offline=true`."""
    if config.logger.mode != "auto":
        return config.logger.mode
    return "online" if os.environ.get("WANDB_API_KEY") and not config.offline else "offline"


def _start(config: TrainConfig) -> Any:
    import wandb

    folder = Path(config.run_dir).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    # The console could repeat a row of the user's data, and a git remote can hold a token.
    settings = wandb.Settings(console="off", disable_git=True, disable_code=True, save_code=False, silent=True)
    try:
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or config.logger.project or "safealign",
            name=folder.name,  # of a sweep's jobs: what each varies
            dir=folder,
            mode=tracking_mode(config),  # type: ignore[arg-type]
            config=asdict(config),
            reinit="finish_previous",
            settings=settings,
        )
    except wandb.errors.Error as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"logger=wandb: {reason}; logger.mode=offline keeps the run in {config.run_dir}") from error
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP)
    return run


def _short(folder: Path) -> Path:
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
