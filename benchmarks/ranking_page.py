"""The ranking benchmark's figures as one page of tables and one picture."""

from __future__ import annotations

from collections.abc import Mapping
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
    """Writes `ranking.md`, and `ranking.png` once there are depths or attacks to draw."""
    written = [write_text(folder / "ranking.md", page(results, note))]
    if results.get("depths") or results.get("best_of"):
        written.append(_picture(folder / "ranking.png", results))
    return written


def _picture(path: Path, results: Mapping[str, Part]) -> Path:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _depths(left, results.get("depths", {}))
    _attacks(right, results.get("best_of", {}))
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


def _attacks(axis: Any, part: Part) -> None:
    names = list(dict.fromkeys(name for row in part.values() for name in row))
    width = 0.8 / max(1, len(names))
    for index, name in enumerate(names):
        values = [row.get(name) for row in part.values()]
        heights = [v["value"] if isinstance(v, Mapping) and v.get("value") is not None else 0.0 for v in values]
        at = [place + index * width for place in range(len(part))]
        axis.bar(at, heights, width, color=(*COLOURS, GREY)[index % (len(COLOURS) + 1)], label=name)
    axis.set_xticks([place + 0.4 for place in range(len(part))], list(part), rotation=20)
    axis.set(ylabel="share that is bad", title="Best of m")
    if names:
        axis.legend(fontsize=7)
