"""The summary on the terminal: before and after, the head's table, notes."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from safealign.reporting.summary import Grid, Summary

SIDE_BY_SIDE = 3  # up to so many systems stand beside each other, one column each


def before_after(summary: Summary) -> Table:
    """All areas in one table: a row per measure, a column per system (for few systems)."""
    table = Table(title=escape(summary.title), title_justify="left", header_style="bold")
    table.add_column("measure")
    for title in summary.systems.values():
        table.add_column(escape(title), justify="right", overflow="fold")
    for area in summary.areas.values():
        if not area.cells:
            continue
        table.add_section()
        table.add_row(f"[bold]{escape(area.title)}[/bold]")
        for measure in area.measures:
            table.add_row(
                f"  {escape(measure.heading)}", *(area.shown(row, measure) for row in summary.systems)
            )
    return table


def grid_table(grid: Grid) -> Table:
    """One grid; what there are fewer of, its rows or its measures, becomes the columns, so that it fits a terminal."""
    caption = escape(grid.note) if grid.note else None
    table = Table(title=escape(grid.title), title_justify="left", header_style="bold", caption=caption)
    rows = [row for row in grid.rows if row in grid.cells]
    measures_down = len(rows) < len(grid.measures)
    table.add_column("measure" if measures_down else "")
    for title in [grid.rows[row] for row in rows] if measures_down else [m.heading for m in grid.measures]:
        table.add_column(escape(title), justify="right", overflow="fold")
    if measures_down:
        for measure in grid.measures:
            table.add_row(escape(measure.heading), *(grid.shown(row, measure) for row in rows))
    else:
        for row in rows:
            table.add_row(escape(grid.rows[row]), *(grid.shown(row, measure) for measure in grid.measures))
    return table


def show_summary(summary: Summary, console: Console | None = None) -> None:
    """Print everything: few systems side by side, many as rows; then the other tables and the notes."""
    console = console or Console()
    if len(summary.systems) <= SIDE_BY_SIDE:
        console.print(before_after(summary))
    else:
        for area in summary.areas.values():
            if area.cells:
                console.print(grid_table(area))
    for grid in summary.grids.values():
        console.print(grid_table(grid))
    for note in summary.notes:
        console.print(f"• {note}", markup=False, highlight=False)
