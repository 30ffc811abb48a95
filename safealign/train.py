"""`python -m safealign.train +recipe=llama_lora`: train, calibrate, export, quick evaluation, report."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console

from safealign.commands import run_command
from safealign.config.roots import TrainConfig
from safealign.sweep import gather


def main(config: TrainConfig) -> None:
    """Runs one training job as configured; everything it makes lies in `config.run_dir`."""
    from safealign.training.evaluating import evaluate_built
    from safealign.training.pipeline import build
    from safealign.training.tracking import tracked

    console = Console()
    started = time.monotonic()
    command = " ".join(["python -m safealign.train", *sys.argv[1:]])
    with tracked(config, console) as tracker:
        built = build(config, console, tracker)
        evaluate_built(config, built, console, command, tracker)
    minutes = (time.monotonic() - started) / 60
    console.print(f"\n[bold]done[/] in {minutes:.1f} min. Export: {built.export}", highlight=False)
    if config.suite.name != "none":
        console.print(f"Report:  {Path(config.run_dir) / 'report' / 'summary.md'}", highlight=False)
    console.print(f"Next:    python -m safealign.chat model={built.export}", highlight=False)


if __name__ == "__main__":
    sys.exit(run_command(main, after_sweep=gather))
