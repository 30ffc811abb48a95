"""`python -m safealign.train +recipe=llama_lora`: train, calibrate, export, quick evaluation, report."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from safealign.commands import run_command
from safealign.config.roots import TrainConfig
from safealign.ranks import JobConsole, job_log, joined, read_world
from safealign.sweep import gather

if TYPE_CHECKING:
    from safealign.training.tracking import Tracker

_OTHERS = "Export and report are rank 0's."  # what the other ranks end with


def main(config: TrainConfig) -> None:
    """Runs one training job as configured; everything it makes lies in `config.run_dir`.

    Under a launcher all ranks train; calibration, export and evaluation are rank 0's, and the others wait for it.
    """
    world = read_world()
    with job_log(Path(config.run_dir), world), joined(_settings(config), alone_too=config.deepspeed.config is not None):
        _run(config, JobConsole(world.rank == 0))


def _run(config: TrainConfig, console: Console) -> None:
    from safealign.training.quiet import quiet
    from safealign.training.tracking import tracked

    quiet()
    started = time.monotonic()
    job = {"pretraining": _pretrain, "srr": _rank}.get(config.objective.name, _tune)
    with tracked(config, console) as tracker:
        ending = job(config, console, tracker)
    minutes = (time.monotonic() - started) / 60
    console.print(f"\n[bold]done[/] in {minutes:.1f} min. {ending}", highlight=False, soft_wrap=True)


def _tune(config: TrainConfig, console: Console, tracker: Tracker) -> str:
    from safealign.training.evaluating import evaluate_built
    from safealign.training.pipeline import build

    built = build(config, console, tracker)
    if built is None:
        return _OTHERS
    command = " ".join(["python -m safealign.train", *sys.argv[1:]])
    evaluated = evaluate_built(config, built, console, command, tracker)
    report = f"\nReport:  {Path(config.run_dir) / 'report' / 'summary.md'}" if evaluated else ""
    return f"Export: {built.export}{report}\nNext:    python -m safealign.chat model={built.export}"


def _pretrain(config: TrainConfig, console: Console, tracker: Tracker) -> str:
    from safealign.training.pretraining_job import build_pretrained

    export = build_pretrained(config, console, tracker)
    if export is None:
        return _OTHERS
    if config.suite.name != "none":
        console.print("no table: what it measures needs thresholds, which come with fine-tuning", highlight=False)
    return f"Export: {export}\nNext:    python -m safealign.train +recipe=llama_lora model.path={export}"


def _rank(config: TrainConfig, console: Console, tracker: Tracker) -> str:
    from safealign.training.ranker_job import build_ranker

    export = build_ranker(config, console, tracker)
    report = Path(config.run_dir) / "report" / "ranker.json"
    return f"Export: {export}\nReport:  {report}\nNext:    python -m benchmarks.ranking model={export}"


def _settings(config: TrainConfig) -> dict[str, object]:
    """What every rank must hold alike: the resolved config, and the versions that run it."""
    versions = {name: version(name) for name in ("safealign", "torch", "transformers", "trl", "peft")}
    return {**asdict(config), "version": versions}


if __name__ == "__main__":
    sys.exit(run_command(main, after_sweep=gather, many_ranks=True))
