"""Pictures of a result: reliability, scores by set, attack success by prefill, the verdict along an answer.

Colours are Okabe and Ito's, which people with any colour vision can tell apart; lines differ by marker as
well.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from safealign.reporting.cells import Cell

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLES = ("-", "--", "-.", ":")
GREY = "#666666"


class Bin(Protocol):
    """A reliability bin: mean probability and the rate of harmful rows."""

    @property
    def mean_probability(self) -> float:
        """Mean predicted probability of the bin's rows."""
        ...

    @property
    def harmful(self) -> Any:
        """Rate of harmful rows, with value, n and interval."""
        ...


def reliability(
    bins: Sequence[Bin], path: str | Path, title: str = "Reliability of the request verdict"
) -> Path:
    """Share of harmful rows against predicted probability, with intervals; below, the rows of each bin."""
    figure = Figure(figsize=(5.6, 6.2), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    cells = [Cell.of(row.harmful) for row in bins]
    x = [row.mean_probability for row in bins]
    top.plot([0, 1], [0, 1], linestyle="--", color=GREY, label="perfectly calibrated")
    draw_points(top, x, cells, 0, "safety head (95 % interval)", line=False)
    top.set(ylabel="share that is harmful", ylim=(-0.03, 1.03), xlim=(-0.03, 1.03), title=title)
    top.legend(loc="upper left")
    bottom.bar(x, [cell.n or 0 for cell in cells], width=0.05, color=COLOURS[0])
    bottom.set(
        ylabel="rows",
        yscale="log",
        ylim=(0.7, None),
        xlabel="predicted probability of harm (mean of the bin)",
    )
    return save(figure, path)


def score_histograms(
    scores: Mapping[str, Sequence[float] | np.ndarray],
    path: str | Path,
    *,
    harmful: Sequence[str] = (),
    thresholds: Mapping[str, float] | None = None,
    title: str = "Scores of the request verdict by set",
    xlabel: str = "logit of harm",
) -> Path:
    """One histogram per set under each other on one axis; sets named in `harmful` are hatched and orange."""
    figure = Figure(figsize=(7.5, 1.0 + 1.25 * len(scores)), layout="constrained")
    axes = figure.subplots(len(scores), 1, sharex=True, squeeze=False)[:, 0]
    pooled = np.concatenate([np.asarray(values, dtype=float) for values in scores.values()])
    edges = np.linspace(pooled.min() - 0.5, pooled.max() + 0.5, 50)
    for axis, (name, values) in zip(axes, scores.items(), strict=True):
        bad = name in harmful
        style = {"color": COLOURS[1], "hatch": "///"} if bad else {"color": COLOURS[0]}
        axis.hist(values, bins=edges, edgecolor="white", linewidth=0.4, **style)
        kind = "harmful" if bad else "benign"
        axis.set_title(f"{name} ({kind}, n = {len(values)})", loc="left", fontsize=9)
        axis.set_ylabel("rows", fontsize=9)
        for place, value in enumerate((thresholds or {}).values()):
            axis.axvline(value, color="black", linestyle=STYLES[place + 1 & 3], linewidth=1.2)
    for place, (name, value) in enumerate((thresholds or {}).items()):
        axes[0].plot([], [], color="black", linestyle=STYLES[place + 1 & 3], label=f"{name} = {value:.2f}")
    if thresholds:
        axes[0].legend(loc="upper right", fontsize=8)
    axes[-1].set_xlabel(xlabel)
    figure.suptitle(title)
    return save(figure, path)


def attack_by_prefill(
    rates: Mapping[str, Mapping[int, Any]],
    path: str | Path,
    title: str = "Attack success by length of the prefill",
) -> Path:
    """Attack success of each system at each prefill length (0 = direct), in per cent with 95 % intervals."""
    figure = Figure(figsize=(7.0, 4.4), layout="constrained")
    axis = figure.subplots()
    lengths = sorted({length for found in rates.values() for length in found})
    places = {length: place for place, length in enumerate(lengths)}
    for index, (system, found) in enumerate(rates.items()):
        shift = 0.06 * (index - (len(rates) - 1) / 2)  # so that equal rates do not hide each other
        x = [places[length] + shift for length in sorted(found)]
        draw_points(axis, x, [Cell.of(found[length]) for length in sorted(found)], index, system, scale=100.0)
    axis.set_xticks(range(len(lengths)), ["direct" if length == 0 else str(length) for length in lengths])
    axis.set(
        xlabel="tokens of the answer put into the model's mouth", ylabel="attack success (%)", title=title
    )
    axis.set_ylim(-3, 103)
    axis.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    return save(figure, path)


def verdict_along_answer(
    positions: Sequence[int],
    probabilities: Sequence[float],
    path: str | Path,
    *,
    threshold: float | None = None,
    intervened_at: int | None = None,
    words: Sequence[str] | None = None,
    title: str = "Verdict along one answer",
) -> Path:
    """p of the windows over the tokens of one answer.

    `words`: one per position, written under the axis; leave it out for text that should not be shown.
    """
    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    axis = figure.subplots()
    axis.step(positions, probabilities, where="post", color=COLOURS[0])
    axis.plot(
        positions,
        probabilities,
        MARKERS[0],
        color=COLOURS[0],
        markersize=4,
        label="p(harm) of the newest window",
    )
    if threshold is not None:
        axis.axhline(threshold, color=COLOURS[1], linestyle="--", label=f"threshold, p = {threshold:.2f}")
    if intervened_at is not None:
        axis.axvline(
            intervened_at, color="black", linestyle=":", label=f"intervention at token {intervened_at}"
        )
    if words is not None:
        axis.set_xticks(
            list(positions), [word.strip() for word in words], rotation=60, ha="right", fontsize=8
        )
    axis.set(xlabel="token of the answer", ylabel="probability of harm", ylim=(-0.03, 1.03), title=title)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return save(figure, path)


def draw_points(
    axis: Axes,
    x: Sequence[float],
    cells: Sequence[Cell],
    index: int,
    label: str,
    *,
    scale: float = 1.0,
    line: bool = True,
) -> None:
    """Values with error bars (where a cell has an interval) in the colour, marker and line style of `index`."""
    y = np.array([np.nan if cell.value is None else cell.value for cell in cells]) * scale
    ends = [
        cell.interval if cell.interval and None not in cell.interval else (np.nan, np.nan) for cell in cells
    ]
    low, high = (np.array([end[side] for end in ends], dtype=float) * scale for side in (0, 1))
    bars = np.clip(np.vstack([y - low, high - y]), 0.0, None)
    axis.errorbar(
        x,
        y,
        yerr=bars,
        label=label,
        capsize=3,
        **(look(index) if line else look(index) | {"linestyle": "none"}),
    )


def look(index: int) -> dict[str, Any]:
    """Colour, marker and line of the `index`-th series; from the eighth on the markers are hollow."""
    found = {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": STYLES[index % len(STYLES)],
    }
    return found if index < len(COLOURS) else found | {"markerfacecolor": "white"}


def save(figure: Figure, path: str | Path) -> Path:
    """Write the picture in one step; returns its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    figure.savefig(temporary, dpi=150)
    os.replace(temporary, path)
    return path
