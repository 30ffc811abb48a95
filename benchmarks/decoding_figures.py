"""The decoding benchmark's picture: time ratios to `hf.generate`, a panel for each kind of request and prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from safealign.reporting.plots import COLOURS, GREY


def draw(report: dict[str, Any], path: Path) -> None:
    """Bars by batch size for every system, with quartiles; the line is `hf.generate`."""
    panels: dict[str, dict[str, dict[str, Any]]] = {}
    for name, systems in report["cases"].items():
        kind, batch, prompt = name.split(", ")
        panels.setdefault(f"{kind}, {prompt} tokens", {})[batch] = systems
    figure = Figure(figsize=(max(7.5, 4.8 * len(panels)), 4.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (title, cases) in zip(axes, panels.items(), strict=True):
        _panel(axis, title, cases)
    axes[0].set_ylabel("time of a step, relative to hf.generate")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(f"{report['model']}\n{report['dtype']}, {report['machine']}", fontsize=9)
    figure.savefig(path, dpi=150)


def _panel(axis: Any, title: str, cases: dict[str, dict[str, Any]]) -> None:
    names = [name for name in next(iter(cases.values())) if name != "hf.generate"]
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        rows = [systems[name] for systems in cases.values()]
        x = [at + (index - (len(names) - 1) / 2) * width for at in range(len(rows))]
        y = [row["ratio"] for row in rows]
        spread = [
            [max(0.0, row["ratio"] - row["ratio_low"]) for row in rows],
            [max(0.0, row["ratio_high"] - row["ratio"]) for row in rows],
        ]
        axis.bar(x, y, width, yerr=spread, label=name, color=COLOURS[index % len(COLOURS)], error_kw={"lw": 0.8})
    axis.axhline(1.0, color=GREY, linewidth=1)
    axis.set_xticks(range(len(cases)), list(cases))
    axis.set_title(title, fontsize=10)
