"""The runs below a folder: what each varies, whether it is whole, and its figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from safealign.config.sweeps import FAILED, JOB_FILE, RUNNING, JobRecord, read_plan
from safealign.errors import DataError
from safealign.modeling.manifest import MANIFEST_FILE
from safealign.reporting.cells import Cell
from safealign.reporting.summary import AREAS, Measure, Summary

COMPLETE, INCOMPLETE = "complete", "incomplete"
_OF = {"attack_success": "attack success: ", "over_refusal": "false refusals: "}
# The last of these in metrics.jsonl; measured on validation examples.
_LOGGED = (
    Measure("eval_lm/loss", "validation: LM loss", "number"),
    Measure("eval_safety/loss", "validation: safety loss", "number"),
    Measure("eval_safety/request/auroc", "validation: request AUROC", "number"),
    Measure("eval_safety/window/auroc", "validation: window AUROC", "number"),
)


@dataclass
class SweepRun:
    """One run. `note` says what is missing or odd; `cells` by measure, of a complete run alone."""

    name: str
    values: dict[str, str]
    state: str
    note: str = ""
    cells: dict[str, Cell] = field(default_factory=dict)
    measures: list[Measure] = field(default_factory=list)

    @property
    def short_title(self) -> str:
        """What it varies, by the last part of each key: for columns and legends."""
        return ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in self.values.items()) or self.name


def read_runs(folder: Path, system: str) -> list[SweepRun]:
    """Every run below `folder`, planned ones that never started included; runs without a plan differ by config.

    `system`: the row of each run's summary. Raises DataError when there is no run at all.
    """
    plan = read_plan(folder)
    found = [path.name for path in sorted(folder.iterdir()) if _is_run(path)] if folder.is_dir() else []
    names = [*plan, *(name for name in found if name not in plan)]
    if not names:
        raise DataError(f"{folder} holds no run: give the folder that a sweep (-m) wrote, such as outputs/NAME-sweep")
    differing = _differing(folder, [name for name in found if name not in plan])
    return [_read(folder / name, plan.get(name) or differing.get(name, {}), system) for name in names]


def _is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in (JOB_FILE, "config.yaml", "evaluate.yaml"))


def _read(folder: Path, values: dict[str, str], system: str) -> SweepRun:
    record = JobRecord.read(folder)
    run = SweepRun(folder.name, record.values if record and record.values else values, *_state(folder, record))
    if run.state != COMPLETE:
        return run
    notes = [] if record is None or record.attempts == 1 else [f"attempt {record.attempts} in this folder"]
    rows, torn = _last_attempt(folder / "metrics.jsonl")
    if torn:
        notes.append(f"{torn} line(s) of metrics.jsonl cannot be read")
    for measure, cell in [*_measured(folder, system, notes), *_logged(rows)]:
        run.measures.append(measure)
        run.cells[measure.key] = cell
    run.note = "; ".join(notes)
    return run


def _state(folder: Path, record: JobRecord | None) -> tuple[str, str]:
    """Complete, incomplete or failed, and why. A record that says so outweighs what an earlier attempt left behind."""
    if not folder.is_dir():
        return INCOMPLETE, "never started"
    if record is not None and record.state == FAILED:
        return FAILED, record.error
    steps = [row["step"] for row in _last_attempt(folder / "metrics.jsonl")[0] if isinstance(row.get("step"), int)]
    reached = f"last logged step {steps[-1]}" if steps else "nothing logged"
    if record is not None and record.state == RUNNING:
        return INCOMPLETE, f"stopped, or still running; {reached}"
    if not (folder / "config.yaml").is_file():  # an evaluation
        whole = (folder / "report" / "summary.json").is_file()
        return (COMPLETE, "") if whole else (INCOMPLETE, "not evaluated")
    if not (folder / "export" / MANIFEST_FILE).is_file():
        return INCOMPLETE, f"no export; {reached}"
    config = _config(folder)  # pretraining ends without a table, whatever the suite
    evaluates = config.get("suite.name") != "none" and config.get("objective.name") not in ("pretraining", "srr")
    if evaluates and not (folder / "report" / "summary.json").is_file():
        return INCOMPLETE, "exported, not evaluated"
    return COMPLETE, ""


def _measured(folder: Path, system: str, notes: list[str]) -> Iterator[tuple[Measure, Cell]]:
    path = folder / "report" / "summary.json"
    if not path.is_file():
        return
    try:
        summary = Summary.from_json(path)
    except DataError:
        notes.append("report/summary.json cannot be read: evaluate the run again")
        return
    if system not in summary.systems:
        notes.append(f"no row '{system}' in report/summary.json (it has {', '.join(summary.systems)})")
    for area in AREAS:
        grid = summary.areas[area]
        for measure in grid.measures:
            cell = grid.cells.get(system, {}).get(measure.key)
            if cell is not None:
                yield Measure(f"{area}/{measure.key}", f"{_OF.get(area, '')}{measure.title}", measure.style), cell


def _logged(rows: list[dict[str, Any]]) -> Iterator[tuple[Measure, Cell]]:
    for measure in _LOGGED:
        values = [row[measure.key] for row in rows if row.get(measure.key) is not None]
        if values:
            yield measure, Cell(float(values[-1]))


def _last_attempt(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Rows of `metrics.jsonl` since the step last went back (a run begun again appends), and lines that are torn."""
    rows: list[dict[str, Any]] = []
    torn, step = 0, -1
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            row = dict(json.loads(line))
            now = int(row.get("step", step))
        except (ValueError, TypeError):
            torn += 1
            continue
        if now < step:
            rows = []
        step = now
        rows.append(row)
    return rows, torn


def _differing(folder: Path, names: list[str]) -> dict[str, dict[str, str]]:
    """For runs that no plan tells apart: the keys in which their configs differ, but for names and places."""
    configs = {name: _config(folder / name) for name in names}
    keys = sorted({key for config in configs.values() for key in config} - {"name", "run_dir"})
    apart = [key for key in keys if len({config.get(key) for config in configs.values()}) > 1]
    return {name: {key: config.get(key, "–") for key in apart} for name, config in configs.items()}


def _config(folder: Path) -> dict[str, str]:
    path = folder / "config.yaml"
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path if path.is_file() else folder / "evaluate.yaml"))
    except (OSError, OmegaConfBaseException, YAMLError):
        return {}
    return dict(_flat(tree))


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items() if isinstance(tree, dict) else ():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
