"""What does each schedule catch, and how often does it look? Every one calibrated for itself, side by side.

    python -m benchmarks.schedules model=outputs/llama_lora/export [run_dir=outputs/schedules]

For each schedule the windows' threshold is set anew from the run's own calibration units, under the same budget; then
harmful continuations of benign beginnings and benign answers are replayed. `rows` are safety rows per generated token
of a benign answer: what a schedule costs, whatever the machine (`benchmarks.decoding` times it). Prints a table and
writes `run_dir/schedules.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from safealign.config.roots import TrainConfig
from safealign.data.records import Record
from safealign.decoding.schedule import make_schedule
from safealign.evaluation.metrics.calibration import threshold
from safealign.evaluation.sets import load_set
from safealign.evaluation.systems import System
from safealign.evaluation.window_table import WindowAnswers, caught, interrupted
from safealign.files import write_text
from safealign.judges.refusal import RefusalMatcher
from safealign.model import SafeModel, load
from safealign.reporting.cells import Cell
from safealign.sampling import spread
from safealign.training.evaluating import read_run_config
from safealign.training.pipeline import load_model, prepare_data

SCHEDULES: dict[str, dict[str, Any]] = {
    "annealing to 32": {"schedule": "annealing", "floor": 32},
    "annealing to 8": {"schedule": "annealing", "floor": 8},
    "periodic(10)": {"schedule": "periodic", "interval": 10},
    "cascade, floor 32": {"schedule": "cascade", "floor": 32},
    "cascade, floor 8": {"schedule": "cascade", "floor": 8},
    "every": {"schedule": "every"},
}
LENGTH = 48  # tokens of an answer


@dataclass
class Bench:
    """The model, its run's calibration units, and the answers that are replayed."""

    model: SafeModel
    config: TrainConfig
    units: list[Record]
    answers: WindowAnswers


def main(arguments: Sequence[str]) -> None:
    """Measures every schedule, writing what is there after each."""
    given = {"run_dir": "outputs/schedules"} | dict(item.split("=", 1) for item in arguments)
    console, rows = Console(), dict[str, dict[str, Any]]()
    bench = set_up(Path(given["model"]), console)
    for name, options in SCHEDULES.items():
        rows[name] = measure(bench, options)
        write_text(Path(given["run_dir"]) / "schedules.json", json.dumps(rows, indent=2) + "\n")
        show(rows, console)


def set_up(export: Path, console: Console) -> Bench:
    """Loads the export and writes the answers: harmful ones by the undefended model, benign ones by ours."""
    config = read_run_config(export.parent / "config.yaml")
    if config is None:
        raise SystemExit(f"{export.parent / 'config.yaml'} is not there: name the export inside its run directory")
    base, renderer = load_model(config)
    data = prepare_data(config, base, renderer, console)
    model = load(export, dtype=config.model.dtype)
    undefended = SafeModel(base.to(model.hf.dtype), renderer.tokenizer)
    refused = RefusalMatcher(model.options.trigger).refused
    harmful, hosts = load_set("harmful"), load_set("benign", 160)
    said = undefended.generate_batch([r.prompt for r in harmful], max_new_tokens=LENGTH)
    kept = [list(out.tokens) for out in said if not refused(out.text)]
    own = model.generate_batch([r.prompt for r in hosts], max_new_tokens=LENGTH, theta_window=None)
    benign = [(r, list(out.tokens)) for r, out in zip(hosts, own, strict=True) if not out.refused]
    answers = WindowAnswers([(hosts[i % len(hosts)], tokens) for i, tokens in enumerate(kept)], benign, [])
    return Bench(model, config, spread(data.calibration, config.safety.calibration.answered), answers)


def measure(bench: Bench, options: dict[str, Any]) -> dict[str, Any]:
    """Threshold, detection, false interruptions and rows per token of one schedule."""
    model, settings = bench.model, bench.config.safety.calibration
    prompts = [record.prompt for record in bench.units]
    recorded = model.record_batch(prompts, max_new_tokens=settings.max_new_tokens, batch_size=64, **options)
    statistics = [max(-1e4, recording.window_statistic) for recording in recorded]
    share = settings.window_share
    found = threshold(statistics, settings.budget * share, 1.0 - settings.error_probability * share)
    assert model.thresholds is not None
    before = model.thresholds
    model.thresholds = replace(before, window=found.logit)
    try:
        system = System("ours", model, options)
        rates = {
            "caught": Cell.of(caught(system, bench.answers, 8)).to_dict(),
            "interrupted": Cell.of(interrupted(system, bench.answers.benign)).to_dict(),
        }
    finally:
        model.thresholds = before
    windows, tokens = sum(len(r.windows) for r in recorded), sum(r.length for r in recorded)
    sizes = {name: value for name, value in options.items() if name != "schedule"}
    gap = make_schedule(options["schedule"], **sizes).largest_gap()
    return {"theta": found.logit, "gap": gap, "rows": windows / max(1, tokens), **rates}


def show(rows: dict[str, dict[str, Any]], console: Console) -> None:
    """The table so far."""
    table = Table("schedule", "largest gap", "rows per token", "caught within 32", "benign interrupted")
    for name, row in rows.items():
        rates = (Cell.of(row[rate]).text() for rate in ("caught", "interrupted"))
        table.add_row(name, str(row["gap"]), f"{row['rows']:.3f}", *rates)
    console.print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
