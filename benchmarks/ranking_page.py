"""The ranking benchmark's figures as one page of tables and one picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from safealign.files import write_text
from safealign.reporting.plots import COLOURS, GREY, MARKERS, save

Part = Mapping[str, Mapping[str, Any]]
TITLES = {
    "accuracy": "Good picks by data set, and transfer (trained on / tested on; mixed lists)",
    "depths": "Depth and pool (listwise, all data sets but HarmBench)",
    "kinds": "Kinds of scorer on the same held-out lists",
    "best_of": "Best of m: attack success, and refusals of benign requests (lower is better)",
    "cost": "Cost against m",
}


def page(results: Mapping[str, Part], note: str) -> str:
    """Markdown of every part that there is."""
    sections = [f"## {TITLES[name]}\n\n{table(part)}" for name, part in results.items() if part and name in TITLES]
    return "\n\n".join([note, *sections]) + "\n"


def table(part: Part) -> str:
    """A row for each entry, a column for each of its figures."""
    columns = list(dict.fromkeys(column for row in part.values() for column in row))
    lines = [f"| | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 1)]
    lines += [f"| {name} | {' | '.join(shown(row.get(c)) for c in columns)} |" for name, row in part.items()]
    return "\n".join(lines)


def shown(value: Any) -> str:
    """A figure with its interval and count, as its dictionary has them."""
    if value is None:
        return "–"
    if not isinstance(value, Mapping):
        return f"{value:.3g}" if isinstance(value, float) else str(value)
    if value.get("value") is None:
        return "–"
    low, high = value["interval"]
    span = f"; {low:.3f}–{high:.3f}" if low is not None and high is not None else ""
    return f"{value['value']:.3f} ({value.get('note', '')}n={value['n']}{span})"


def write_page(folder: Path, results: Mapping[str, Part], note: str) -> list[Path]:
    """Writes `ranking.md`, and `ranking.png` once there is something to draw."""
    written = [write_text(folder / "ranking.md", page(results, note))]
    if any(results.get(name) for name in PANELS):
        written.append(_picture(folder / "ranking.png", results))
    return written


def _picture(path: Path, results: Mapping[str, Part]) -> Path:
    panels = [(draw, results[name]) for name, draw in PANELS.items() if results.get(name)]
    figure = Figure(figsize=(5.2 * len(panels), 4.2), layout="constrained")
    for axis, (draw, part) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(axis, part)
    return save(figure, path)


def _depths(axis: Any, part: Part) -> None:
    for index, pool in enumerate(sorted({str(row["pool"]) for row in part.values()})):
        rows = [row for row in part.values() if row["pool"] == pool]
        rows = [row for row in rows if row["good picks"]["value"] is not None]
        low = [row["good picks"]["value"] - _end(row["good picks"], 0) for row in rows]
        high = [_end(row["good picks"], 1) - row["good picks"]["value"] for row in rows]
        axis.errorbar(
            [row["depth"] for row in rows],
            [row["good picks"]["value"] for row in rows],
            yerr=[low, high],
            color=COLOURS[index],
            marker=MARKERS[index],
            label=pool,
        )
    if part:
        chance = next(iter(part.values()))["at random, good picks"]["value"]
        axis.axhline(chance, color=GREY, linestyle="--", label="at random")
        axis.legend()
    axis.set(xlabel="depth (blocks)", ylabel="good picks on held-out lists", title="Depth")


def _end(figure: Mapping[str, Any], side: int) -> float:
    """An end of the interval; the value itself where there is none."""
    found = figure["interval"][side]
    value: float = figure["value"] if found is None else found
    return max(value, figure["value"]) if side else min(value, figure["value"])


def _kinds(axis: Any, part: Part) -> None:
    columns = ("malicious", "benign", "without given openings")
    _bars(axis, {column: {name: row.get(column) for name, row in part.items()} for column in columns})
    axis.set(ylim=(0, 1.6), ylabel="good picks on held-out lists", title="Kinds of scorer")


def _attacks(axis: Any, part: Part) -> None:
    _bars(axis, part)
    axis.set(ylim=(0, 1.6), ylabel="share that is bad", title="Best of m")


def _bars(axis: Any, part: Part) -> None:
    """A group of bars for each row, a colour for each of its figures, with intervals where there are any."""
    names = list(dict.fromkeys(name for row in part.values() for name in row))
    width = 0.8 / max(1, len(names))
    for index, name in enumerate(names):
        at = [place + (index + 0.5) * width for place in range(len(part))]
        found = [(x, row.get(name)) for x, row in zip(at, part.values(), strict=True)]
        known = [(x, figure) for x, figure in found if isinstance(figure, Mapping) and figure.get("value") is not None]
        heights = [figure["value"] for _, figure in known]
        ends = [[abs(_end(figure, side) - figure["value"]) for _, figure in known] for side in (0, 1)]
        colour = (*COLOURS, GREY)[index % (len(COLOURS) + 1)]
        axis.bar([x for x, _ in known], heights, width, yerr=ends, color=colour, label=name, error_kw={"lw": 0.8})
    axis.set_xticks([place + 0.4 for place in range(len(part))], list(part), rotation=15)
    axis.set_yticks([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axis.legend(fontsize=7, loc="upper left")


PANELS: dict[str, Callable[[Any, Part], None]] = {"depths": _depths, "kinds": _kinds, "best_of": _attacks}
