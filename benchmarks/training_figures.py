"""The training benchmark's picture: speed and memory of each system, and their loss curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from safealign.reporting.plots import COLOURS


def draw(report: dict[str, Any], path: Path) -> None:
    """Three panels: text tokens a second, peak memory, the language model's loss by step."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    speed, memory, losses = figure.subplots(1, 3)
    systems = report["systems"]
    colours = [COLOURS[index % len(COLOURS)] for index in range(len(systems))]
    for axis, key, title in ((speed, "tokens_per_second", "tokens/s"), (memory, "peak_mb", "peak MB")):
        axis.barh(list(systems), [row[key] for row in systems.values()], color=colours)
        axis.set_title(title, fontsize=10)
        axis.invert_yaxis()
    memory.set_yticks([])
    for colour, (name, row) in zip(colours, systems.items(), strict=True):
        losses.plot(range(1, len(row["losses"]) + 1), row["losses"], color=colour, label=name, linewidth=1.4)
    losses.set_title("loss", fontsize=10)
    losses.set_xlabel("step")
    losses.legend(fontsize=7)
    figure.suptitle(f"{report['model']}, {report['machine']}", fontsize=9)
    figure.savefig(path, dpi=150)
