"""The runs of a sweep in one table: on the terminal, as JSON, as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from safealign.files import write_text
from safealign.reporting.cells import Cell
from safealign.reporting.summary import Grid, Measure
from safealign.reporting.sweep_runs import COMPLETE, SweepRun, read_runs
from safealign.reporting.tables import grid_table

_COLOURS = {COMPLETE: "green"}
_SIDE_BY_SIDE = 4  # runs that fit beside each other on a terminal of 80 columns


@dataclass
class SweepTable:
    """Runs side by side; figures of complete ones alone, and every other one by name."""

    title: str
    system: str
    runs: list[SweepRun]

    @classmethod
    def gather(cls, folder: Path, system: str = "safealign") -> SweepTable:
        """Reads every run below `folder`. Raises DataError when there is none."""
        return cls(folder.name, system, read_runs(folder, system))

    @property
    def keys(self) -> list[str]:
        """What the runs vary."""
        return list(dict.fromkeys(key for run in self.runs for key in run.values))

    @property
    def measures(self) -> list[Measure]:
        """Every measure that any run has, in the order of the summary."""
        return list({measure.key: measure for run in self.runs for measure in run.measures}.values())

    @property
    def complete(self) -> list[SweepRun]:
        """The runs that have figures."""
        return [run for run in self.runs if run.state == COMPLETE]

    @property
    def missing(self) -> list[str]:
        """One line on every run without figures: its name, its state and why."""
        return [f"{run.name}: {run.state} ({run.note})" for run in self.runs if run.state != COMPLETE]

    def grid(self, runs: Sequence[SweepRun]) -> Grid:
        """The figures of some of the complete runs."""
        grid = Grid(f"{self.title}: {self.system}", self.measures)
        for run in runs:
            grid.rows[run.name] = run.short_title
            for key, cell in run.cells.items():
                grid.put(run.name, key, cell)
        return grid

    def show(self, console: Console) -> None:
        """Prints the runs with their states, then the figures (value; count; 95 % interval of a rate)."""
        table = Table(title=f"{escape(self.title)}: {len(self.complete)} of {len(self.runs)} runs complete")
        table.title_justify = "left"
        for heading in (*self.keys, "state", "note"):
            table.add_column(escape(heading), overflow="fold")
        for run in self.runs:
            state = f"[{_COLOURS.get(run.state, 'bold red')}]{run.state}[/]"
            note = run.note if self.keys and run.values else f"{run.name} {run.note}".strip()
            table.add_row(*(escape(run.values.get(key, "–")) for key in self.keys), state, escape(note))
        console.print(table)
        for start in range(0, len(self.complete), _SIDE_BY_SIDE):
            console.print(grid_table(self.grid(self.complete[start : start + _SIDE_BY_SIDE])))

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        runs = [
            {
                "name": run.name,
                "values": run.values,
                "state": run.state,
                "note": run.note,
                "figures": {key: cell.to_dict() for key, cell in run.cells.items()},
            }
            for run in self.runs
        ]
        measures = [vars(measure) for measure in self.measures]
        return {"title": self.title, "system": self.system, "keys": self.keys, "measures": measures, "runs": runs}

    def to_csv(self) -> str:
        """One line per run: what it varies, its state, and value, ends of the interval and count of each measure."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        parts = ("", "_low", "_high", "_n")
        figures = [f"{measure.key}{part}" for measure in self.measures for part in parts]
        writer.writerow(["run", *self.keys, "state", "note", *figures])
        for run in self.runs:
            cells = [part for measure in self.measures for part in _plain(run.cells.get(measure.key))]
            writer.writerow([run.name, *(run.values.get(key) for key in self.keys), run.state, run.note, *cells])
        return stream.getvalue()

    def write(self, folder: Path) -> list[Path]:
        """Writes `sweep.json` and `sweep.csv`; returns both paths."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        return [write_text(folder / "sweep.json", text), write_text(folder / "sweep.csv", self.to_csv())]


def _plain(cell: Cell | None) -> list[Any]:
    if cell is None:
        return [None] * 4
    low, high = cell.interval or (None, None)
    return [cell.value, low, high, cell.n]
