"""The picture of a sweep: a panel per measure, one swept key along the axis, the others as lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from safealign.reporting.plots import draw_points, save
from safealign.reporting.summary import Measure
from safealign.reporting.sweep_runs import SweepRun
from safealign.reporting.sweep_table import SweepTable

_COLUMNS, _PANELS = 3, 12
_LEFT_OUT = "cost/"  # timings of a training machine, which other jobs disturb


def sweep_picture(table: SweepTable, path: Path) -> Path | None:
    """Draws the complete runs with 95 % intervals where a measure has them; the others are named below.

    Returns the path, or None when no run is complete.
    """
    measures = [measure for measure in table.measures if not measure.key.startswith(_LEFT_OUT)][:_PANELS]
    if not table.complete or not measures:
        return None
    axis_key = along(table)
    lines = _lines(table, axis_key)
    rows = -(-len(measures) // _COLUMNS)
    figure = Figure(figsize=(4.2 * min(_COLUMNS, len(measures)), 3.1 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, min(_COLUMNS, len(measures)), squeeze=False).ravel()
    for panel, measure in zip(panels, measures, strict=False):
        _draw(panel, measure, lines, axis_key, _ticks(table, axis_key))
    for panel in panels[len(measures) :]:
        panel.set_axis_off()
    if len(lines) > 1:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(lines)), frameon=False, fontsize=8)
    missing = "\n".join(f"not shown: {_shortened(line)}" for line in table.missing)
    title = f"{table.title}, {table.system}; bars: 95 % intervals"
    figure.suptitle(f"{title}\n{missing}" if missing else title, fontsize=10)
    return save(figure, path)


def along(table: SweepTable) -> str | None:
    """The key along the axis: of those that are numbers, else of all, the one with the most values."""
    ranked = sorted(table.keys, key=lambda key: (_numeric(table, key), len(_ticks(table, key))), reverse=True)
    return ranked[0] if ranked else None


def _numeric(table: SweepTable, key: str) -> bool:
    return all(_number(run.values[key]) is not None for run in table.runs if key in run.values)


def _ticks(table: SweepTable, key: str | None) -> list[str]:
    """The values of a key in order, of runs that are missing as well: their place stays empty."""
    found = dict.fromkeys(_at(run, key) for run in table.runs)
    return sorted(found, key=lambda value: (_number(value) is None, _number(value) or 0.0))


def _lines(table: SweepTable, axis_key: str | None) -> dict[str, list[SweepRun]]:
    lines: dict[str, list[SweepRun]] = {}
    for run in table.complete:
        label = ", ".join(f"{key}={value}" for key, value in run.values.items() if key != axis_key)
        lines.setdefault(label, []).append(run)
    return lines


def _draw(
    panel: Axes, measure: Measure, lines: dict[str, list[SweepRun]], axis_key: str | None, ticks: Sequence[str]
) -> None:
    scale = 100.0 if measure.style == "rate" else 1.0
    for index, (label, runs) in enumerate(lines.items()):
        shown = sorted(
            (run for run in runs if measure.key in run.cells), key=lambda run: ticks.index(_at(run, axis_key))
        )
        shift = 0.07 * (index - (len(lines) - 1) / 2)  # so that equal figures do not hide each other
        x = [ticks.index(_at(run, axis_key)) + shift for run in shown]
        draw_points(panel, x, [run.cells[measure.key] for run in shown], index, label, scale=scale)
    panel.set_xticks(range(len(ticks)), [_shortened(tick, 14) for tick in ticks], fontsize=8)
    panel.set_xlim(-0.5, len(ticks) - 0.5)
    panel.set_title(f"{measure.title}{' (%)' if measure.style == 'rate' else ''}", fontsize=9)
    panel.set_xlabel(axis_key or "run", fontsize=8)
    panel.grid(axis="y", alpha=0.3)
    if measure.style == "rate":
        panel.set_ylim(-3, 103)


def _at(run: SweepRun, key: str | None) -> str:
    return run.name if key is None else run.values.get(key, "–")


def _number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _shortened(text: str, length: int = 110) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"
