"""The result of an evaluation: systems × measures, as JSON, as Markdown, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from safealign.errors import DataError
from safealign.files import write_text
from safealign.reporting.cells import Cell

AREAS = {
    "attack_success": "Attack success (lower is better)",
    "over_refusal": "False refusals (lower is better)",
    "usefulness": "Usefulness",
    "cost": "Cost",
}


class Figure(Protocol):
    """Anything with a value, a count and an interval; the evaluation's `Rate` and `Estimate` are."""

    def to_dict(self) -> dict[str, Any]:
        """`value`, `n`, `interval` and, for a rate, `k`."""
        ...


@dataclass(frozen=True)
class Measure:
    """One column: `key` in files, `title` for people, `style` "rate" (shown as per cent) or "number".

    `goal` is what was aimed at, in words ("≤ 5 %"), shown with the title.
    """

    key: str
    title: str
    style: str = "rate"
    goal: str = ""

    @property
    def heading(self) -> str:
        """Title and goal."""
        return f"{self.title} (goal {self.goal})" if self.goal else self.title


@dataclass
class Grid:
    """A table of figures: rows by key (with their titles), columns are measures, cells may be missing."""

    title: str
    measures: list[Measure] = field(default_factory=list)
    rows: dict[str, str] = field(default_factory=dict)
    cells: dict[str, dict[str, Cell]] = field(default_factory=dict)
    note: str = ""

    def put(
        self, row: str, measure: Measure | str, figure: Figure | Mapping[str, Any] | float | None
    ) -> None:
        """Fill one cell; an unknown row is added with its key as title, an unknown `Measure` as a new column.

        Raises:
            DataError: the measure is given by a key that no column has.
        """
        key = measure if isinstance(measure, str) else measure.key
        if isinstance(measure, Measure) and key not in {known.key for known in self.measures}:
            self.measures.append(measure)
        if key not in {known.key for known in self.measures}:
            raise DataError(f"{self.title}: no measure {key!r}; pass a Measure the first time")
        self.rows.setdefault(row, row)
        self.cells.setdefault(row, {})[key] = Cell.of(figure)

    def shown(self, row: str, measure: Measure) -> str:
        """One cell as text, "–" where nothing was measured."""
        cell = self.cells.get(row, {}).get(measure.key)
        return cell.text(measure.style) if cell else "–"

    def figures(self) -> dict[str, dict[str, Any]]:
        """{row: {measure: {value, n, interval, …}}}."""
        return {
            row: {key: cell.to_dict() for key, cell in cells.items()} for row, cells in self.cells.items()
        }

    def to_markdown(self, level: int = 2) -> str:
        """Heading, table with a row per row, and the note."""
        rows = [row for row in self.rows if row in self.cells]
        lines = [f"{'#' * level} {self.title}", ""]
        lines.append("| | " + " | ".join(_plain(measure.heading) for measure in self.measures) + " |")
        lines.append("|---|" + "---|" * len(self.measures))
        for row in rows:
            cells = " | ".join(self.shown(row, measure) for measure in self.measures)
            lines.append(f"| {_plain(self.rows[row])} | {cells} |")
        return "\n".join([*lines, "", *([self.note, ""] if self.note else [])])


@dataclass
class Summary:
    """All figures of one evaluation.

    Systems are the rows of every area (`attack_success`, `over_refusal`, `usefulness`, `cost`); `grids` holds
    the other tables (the head's, by category). `notes` are sentences that belong with the figures: the
    judge's agreement with people, what the thresholds promise.
    """

    title: str
    command: str = ""
    systems: dict[str, str] = field(default_factory=dict)
    areas: dict[str, Grid] = field(default_factory=lambda: {key: Grid(title) for key, title in AREAS.items()})
    grids: dict[str, Grid] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    def add_system(self, key: str, title: str) -> None:
        """Name a row; rows appear in the order in which they are named."""
        self.systems[key] = title
        for grid in self.areas.values():
            grid.rows[key] = title

    def put(
        self, system: str, area: str, measure: Measure | str, figure: Figure | Mapping[str, Any] | float
    ) -> None:
        """Fill one cell of an area.

        Raises:
            DataError: no such area or system, or a measure's key without its `Measure`.
        """
        if area not in self.areas:
            raise DataError(f"summary: no area {area!r}; there are {', '.join(self.areas)}")
        if system not in self.systems:
            raise DataError(f"summary: no system {system!r}; call add_system first")
        self.areas[area].put(system, measure, figure)

    def to_dict(self) -> dict[str, Any]:
        """The areas as {system: {measure: {value, n, interval}}}, then all that is needed to show them."""
        figures = {key: grid.figures() for key, grid in self.areas.items()}
        grids = {key: _grid_dict(grid) | {"figures": grid.figures()} for key, grid in self.grids.items()}
        shown = {key: _grid_dict(grid) for key, grid in self.areas.items()}
        rest = {
            "systems": self.systems,
            "notes": self.notes,
            "meta": self.meta,
            "tables": grids,
            "shown": shown,
        }
        return {"title": self.title, "command": self.command, **figures, **rest}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Summary:
        """The summary that `to_dict` wrote."""
        areas = {key: _grid_from(data["shown"][key], data[key]) for key in AREAS}
        grids = {key: _grid_from(grid, grid["figures"]) for key, grid in data["tables"].items()}
        systems, notes, meta = dict(data["systems"]), list(data["notes"]), dict(data["meta"])
        return cls(data["title"], data["command"], systems, areas, grids, notes, meta)

    def to_json(self, path: str | Path) -> Path:
        """Write `summary.json` in one step (no reader ever sees half of it)."""
        return write_text(
            path, json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        )

    @classmethod
    def from_json(cls, path: str | Path) -> Summary:
        """Read what `to_json` wrote.

        Raises:
            DataError: the file is missing or no summary.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not a summary ({error!r}); run the evaluation again") from error

    def to_markdown(self) -> str:
        """The whole summary for people, tables and notes."""
        parts = [f"# {self.title}", ""]
        if self.command:
            parts += [f"Made by `{self.command}`. Each cell: value (count; 95 % interval).", ""]
        tables = [grid for grid in (*self.areas.values(), *self.grids.values()) if grid.cells]
        parts += [grid.to_markdown() for grid in tables]
        if self.notes:
            parts += ["## Notes", "", *(f"- {note}" for note in self.notes), ""]
        return "\n".join(parts)

    def write(self, folder: str | Path) -> tuple[Path, Path]:
        """Write `summary.json` and `summary.md` into `folder`; returns both paths."""
        folder = Path(folder)
        return self.to_json(folder / "summary.json"), write_text(folder / "summary.md", self.to_markdown())


def _grid_dict(grid: Grid) -> dict[str, Any]:
    return {
        "title": grid.title,
        "measures": [vars(measure) for measure in grid.measures],
        "rows": grid.rows,
        "note": grid.note,
    }


def _grid_from(shape: Mapping[str, Any], figures: Mapping[str, Mapping[str, Any]]) -> Grid:
    cells = {row: {key: Cell.of(cell) for key, cell in found.items()} for row, found in figures.items()}
    measures = [Measure(**measure) for measure in shape["measures"]]
    return Grid(shape["title"], measures, dict(shape["rows"]), cells, shape["note"])


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
