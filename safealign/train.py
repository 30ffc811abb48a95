"""`python -m safealign.train +recipe=llama_lora`: train, calibrate, export, quick evaluation, report."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from safealign.commands import run_command
from safealign.config.roots import TrainConfig
from safealign.ranks import JobConsole, job_log, joined, read_world


def main(config: TrainConfig) -> None:
    """Runs one training job as configured; everything it makes lies in `config.run_dir`.

    Under a launcher all ranks train; calibration, export and evaluation are rank 0's, and the others wait for it.
    """
    world = read_world()
    with job_log(Path(config.run_dir), world), joined(_settings(config), alone_too=config.deepspeed.config is not None):
        _run(config, JobConsole(world.rank == 0))


def _run(config: TrainConfig, console: Console) -> None:
    from safealign.training.evaluating import evaluate_built
    from safealign.training.pipeline import build

    started = time.monotonic()
    built = build(config, console)
    if built is None:
        return
    evaluate_built(config, built, console, " ".join(["python -m safealign.train", *sys.argv[1:]]))
    minutes = (time.monotonic() - started) / 60
    console.print(f"\n[bold]done[/] in {minutes:.1f} min. Export: {built.export}", highlight=False)
    if config.suite.name != "none":
        console.print(f"Report:  {Path(config.run_dir) / 'report' / 'summary.md'}", highlight=False)
    console.print(f"Next:    python -m safealign.chat model={built.export}", highlight=False)


def _settings(config: TrainConfig) -> dict[str, object]:
    """What every rank must hold alike: the resolved config, and the versions that run it."""
    versions = {name: version(name) for name in ("safealign", "torch", "transformers", "trl", "peft")}
    return {**asdict(config), "version": versions}


if __name__ == "__main__":
    sys.exit(run_command(main, many_ranks=True))
