"""The picture of one answer: windows as segments at their p over its tokens, thresholds, the intervention."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from safealign.errors import ConfigError
from safealign.reporting.plots import COLOURS, GREY, save

_MOST_WORDS = 70  # tokens whose text fits under the axis
_LOOKS = {
    "prefix": (COLOURS[2], "window over the caller's prefix"),
    "window": (COLOURS[0], "window"),
    "confirm": (COLOURS[3], "confirmation"),
    "token": (COLOURS[5], "token head"),
    "refresh": (GREY, "refresh (request and answer)"),
}


@dataclass(frozen=True)
class Segment:
    """A verdict p over the tokens `start` … `end`, both included."""

    start: int
    end: int
    p: float
    kind: str
    withdrawn: bool = False


@dataclass(frozen=True)
class Threshold:
    """A labelled horizontal line."""

    name: str
    p: float


@dataclass(frozen=True)
class Scene:
    """Everything in the picture. `first`, `last`: the tokens on the axis, 1 the first generated one; `p`: of the
    request, None if nothing was judged.
    """

    pieces: Sequence[str]
    first: int
    last: int
    p: float | None
    segments: Sequence[Segment]
    thresholds: Sequence[Threshold]
    intervened_at: int | None


def write_picture(scene: Scene, path: str | Path) -> Path:
    """Draws the scene into `path`; returns it. Raises ConfigError for a format that cannot be written."""
    known = Figure().canvas.get_supported_filetypes()
    if (ending := Path(path).suffix.removeprefix(".")) not in known:
        raise ConfigError(f"cannot draw into {path}: {ending or 'no ending'!r} is none of {', '.join(sorted(known))}")
    n = scene.last - scene.first + 1
    figure = Figure(figsize=(min(14.0, max(8.0, 2.0 + 0.21 * n)), 4.8), layout="constrained")
    axis = figure.subplots()
    request_at = scene.first - 1
    if scene.p is None:
        axis.text(0.5, 0.5, "safety was off: nothing was judged", ha="center", transform=axis.transAxes)
    else:
        axis.plot([request_at], [scene.p], "D", color="black", markersize=7, label="request", zorder=4)
    _segments(axis, scene.segments)
    _thresholds(axis, scene)
    _marks(axis, scene)
    _ticks(axis, scene, request_at)
    axis.set(ylim=(-0.03, 1.03), xlim=(request_at - 0.8, scene.last + 0.8), ylabel="p(malicious)", xlabel="token")
    if axis.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a script that the font lacks is shown as boxes
        return save(figure, path)


def _segments(axis: Axes, segments: Sequence[Segment]) -> None:
    ends = [(segment.end, segment.p) for segment in segments if segment.kind == "window" and not segment.withdrawn]
    if ends:  # a thin line from window to window: how p went
        axis.plot(*zip(*ends, strict=True), color=COLOURS[0], linewidth=0.8, alpha=0.35)
    labelled: set[str] = set()
    for segment in segments:
        shade, label = _LOOKS.get(segment.kind, (GREY, segment.kind))
        label += ", withdrawn" if segment.withdrawn else ""
        dashes = ":" if segment.withdrawn else "--" if segment.kind == "refresh" else "-"
        axis.plot(
            [segment.start - 0.4, segment.end + 0.4],
            [segment.p, segment.p],
            color=shade,
            linestyle=dashes,
            linewidth=2.0,
            alpha=0.75,
            label="_" if label in labelled else label,
            solid_capstyle="butt",
        )
        axis.plot(
            [segment.end],
            [segment.p],
            "x" if segment.withdrawn else "o",
            color=shade,
            markersize=6 if segment.withdrawn else 4,
        )
        labelled.add(label)


def _thresholds(axis: Axes, scene: Scene) -> None:
    """Lines, with their names at the right edge, moved apart where they would touch."""
    floor = -1.0
    for threshold in sorted(scene.thresholds, key=lambda found: found.p):
        axis.axhline(threshold.p, color=COLOURS[1], linestyle="--", linewidth=1.1, zorder=1)
        floor = max(threshold.p, floor + 0.055)
        axis.annotate(
            f"{threshold.name} {threshold.p:.2f}",
            (1.0, floor),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=COLOURS[1],
            annotation_clip=False,
        )


def _marks(axis: Axes, scene: Scene) -> None:
    if scene.first < 1:
        axis.axvspan(scene.first - 0.5, 0.5, color=GREY, alpha=0.12, label="caller's prefix")
    if scene.intervened_at is not None:
        at = scene.intervened_at + 0.5
        axis.axvline(at, color="black", linestyle="-.", label=f"intervention at token {scene.intervened_at}")


def _ticks(axis: Axes, scene: Scene, request_at: int) -> None:
    """Token texts where there is room for them, else every tenth number."""
    positions = list(range(scene.first, scene.last + 1))
    if len(positions) > _MOST_WORDS:
        shown = [i for i in positions if i % 10 == 0 and i > request_at + 4]
        axis.set_xticks([request_at, *shown], ["request", *map(str, shown)], fontsize=8)
        return
    words = [_word(scene.pieces[i - 1]) if 1 <= i <= len(scene.pieces) else str(i) for i in positions]
    if scene.last == len(scene.pieces) and not scene.pieces[-1:][0].strip():
        words[-1] = "(end)"
    axis.set_xticks([request_at, *positions], ["request", *words], rotation=60, ha="right", fontsize=8)
    for label in axis.get_xticklabels():
        label.set_rotation_mode("anchor")


def _word(piece: str) -> str:
    """A token's text as a tick label: line breaks visible, no mathematics, not too long."""
    word = piece.replace("\n", "↵").strip().replace("$", r"\$")
    return (word if len(word) <= 14 else word[:13] + "…") or "·"
