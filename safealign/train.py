"""`python -m safealign.train +recipe=llama_lora`: train, calibrate, export, quick evaluation, report."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from safealign.commands import run_command
from safealign.config.roots import TrainConfig
from safealign.sweep import gather

if TYPE_CHECKING:
    from safealign.training.tracking import Tracker


def main(config: TrainConfig) -> None:
    """Runs one training job as configured; everything it makes lies in `config.run_dir`."""
    from safealign.training.tracking import tracked

    console = Console()
    started = time.monotonic()
    job = _pretrain if config.objective.name == "pretraining" else _tune
    with tracked(config, console) as tracker:
        ending = job(config, console, tracker)
    minutes = (time.monotonic() - started) / 60
    console.print(f"\n[bold]done[/] in {minutes:.1f} min. {ending}", highlight=False)


def _tune(config: TrainConfig, console: Console, tracker: Tracker) -> str:
    from safealign.training.evaluating import evaluate_built
    from safealign.training.pipeline import build

    built = build(config, console, tracker)
    command = " ".join(["python -m safealign.train", *sys.argv[1:]])
    evaluated = evaluate_built(config, built, console, command, tracker)
    report = f"\nReport:  {Path(config.run_dir) / 'report' / 'summary.md'}" if evaluated else ""
    return f"Export: {built.export}{report}\nNext:    python -m safealign.chat model={built.export}"


def _pretrain(config: TrainConfig, console: Console, tracker: Tracker) -> str:
    from safealign.training.pretraining_job import build_pretrained

    export = build_pretrained(config, console, tracker)
    if config.suite.name != "none":
        console.print("no table: what it measures needs thresholds, which come with fine-tuning", highlight=False)
    return f"Export: {export}\nNext:    python -m safealign.train +recipe=llama_lora model.path={export}"


if __name__ == "__main__":
    sys.exit(run_command(main, after_sweep=gather))
