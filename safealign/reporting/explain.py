"""One answer explained: p over its text, the windows and thresholds behind it, and where the rules stepped in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from safealign.decoding import Evaluation, ProbeKind
from safealign.decoding.streaming import TextStream
from safealign.session import Output

# A refresh judges the request together with the answer, so its p says nothing about the text that it covers.
_OVER_TEXT = (ProbeKind.WINDOW, ProbeKind.CONFIRM, ProbeKind.PREFIX, ProbeKind.TOKEN)
_ROWS, _COLUMNS = 6, 72
_BLOCKS = " ▁▂▃▄▅▆▇█"
_COLOURS = ((0.2, "green"), (0.5, "yellow"), (1.01, "red"))


def colour(p: float) -> str:
    """Green, yellow or red."""
    return next(name for limit, name in _COLOURS if p < limit)


@dataclass(frozen=True)
class Explanation:
    """What is drawn. `pieces`: text of each token that stands; `first`: the g index of a caller's prefix's first
    token, 1 without one; `withdrawn`: evaluations over tokens that an intervention took back; `standing`: the others.
    """

    pieces: tuple[str, ...]
    first: int
    p: float | None
    standing: tuple[Evaluation, ...]
    withdrawn: tuple[Evaluation, ...]
    thresholds: Mapping[str, float]
    intervened_at: int | None

    @classmethod
    def of(cls, output: Output, tokenizer: Any) -> Explanation:
        """Sorts an output's trace; thresholds that were off or had nothing to judge are left out."""
        taken = [entry for entry in output.trace if _was_withdrawn(entry, output)]
        kept = [entry for entry in output.trace if entry not in taken]
        kinds = {"query" if e.kind == ProbeKind.REQUEST else str(e.kind) for e in output.trace} | {"window"}
        thresholds = {
            name: value for name, value in (output.thresholds or {}).items() if value is not None and name in kinds
        }
        first = min((entry.span[0] for entry in output.trace if entry.span), default=1)
        return cls(
            _pieces(output, tokenizer),
            min(first, 1),
            output.p,
            tuple(kept),
            tuple(taken),
            thresholds if output.trace else {},
            output.intervened_at,
        )

    @property
    def last(self) -> int:
        """The last g index that is drawn, withdrawn ones included."""
        return max([len(self.pieces), *(entry.span[1] for entry in self.withdrawn if entry.span)])

    def newest(self) -> dict[int, float]:
        """g index → p of the newest standing verdict over it; indices that none looked at are missing."""
        found: dict[int, float] = {}
        for entry in self.standing:
            if entry.kind in _OVER_TEXT and entry.span is not None:
                found.update(dict.fromkeys(range(entry.span[0], entry.span[1] + 1), entry.p))
        return found


def _was_withdrawn(entry: Evaluation, output: Output) -> bool:
    """Whether it judged tokens that were taken back: windows past S. `low` keeps them (its refresh covers them)."""
    at = output.intervened_at
    if entry.span is None or entry.kind not in _OVER_TEXT:
        return False
    if at is None:  # only a cancelled answer takes anything back without an intervention
        return entry.span[1] > len(output.tokens)
    kept = max([at, *(e.span[1] for e in output.trace if e.span and e.kind == ProbeKind.REFRESH)])
    return entry.span[1] > kept


def _pieces(output: Output, tokenizer: Any) -> tuple[str, ...]:
    """Whole characters only: a token that completes none has no text, the one that does has all of it."""
    stream = TextStream(tokenizer)
    pieces = [stream.push([token]) for token in output.tokens]
    if pieces:
        pieces[-1] += stream.finish()
    return tuple(pieces)


# ---- on the terminal ----------------------------------------------------------------------------------------


def draw(found: Explanation) -> Group:
    """What rich prints: a heading, the text coloured by its newest p, a chart of p by position, what was withdrawn."""
    if found.p is None:
        return Group(Text("".join(found.pieces)), Text("safety was off: nothing was judged", style="dim"))
    parts: list[RenderableType] = [_heading(found), Text(), _coloured(found), Text(), *_chart(found)]
    for entry in found.withdrawn:
        assert entry.span is not None
        line = Text(f"withdrawn: tokens {entry.span[0]}–{entry.span[1]}, {entry.kind}, p ", style="dim")
        parts.append(line.append(f"{entry.p:.3f}", style=colour(entry.p)))
    return Group(*parts)


def _heading(found: Explanation) -> Text:
    assert found.p is not None
    line = Text("request p ").append(f"{found.p:.3f}", style=colour(found.p))
    for name, value in found.thresholds.items():
        line.append(f" · θ_{name} {value:.3f}", style="dim")
    if found.intervened_at is not None:
        line.append(f" · intervened at token {found.intervened_at}", style="bold red")
    return line


def _coloured(found: Explanation) -> Text:
    text, newest = Text(), found.newest()
    if found.first < 1:
        tail = newest.get(0)
        text.append("[caller's prefix] ", style="dim" if tail is None else colour(tail))
    for index, piece in enumerate(found.pieces, start=1):
        if found.intervened_at == index - 1:
            text.append("▲", style="bold red")
        text.append(piece, style=colour(newest[index]) if index in newest else "")
    return text


def _chart(found: Explanation) -> list[Text]:
    """Bars of p by position, the request's first; a column holds the highest p of its positions."""
    positions = list(range(found.first, len(found.pieces) + 1))
    wide = max(1, -(-len(positions) // _COLUMNS))
    groups = [positions[at : at + wide] for at in range(0, len(positions), wide)]
    newest = found.newest()
    bars = [found.p, None, *(max((newest[i] for i in g if i in newest), default=None) for g in groups)]
    lines = [_chart_row(row, bars, found.thresholds) for row in reversed(range(_ROWS))]
    marks = "".join("▲" if found.intervened_at in (g[0] - 1, *g[:-1]) else "─" for g in groups)
    axis = Text("  0 ┴").append("R─", style="dim").append(marks, style="dim")
    below = f"R: request; tokens {found.first} to {len(found.pieces)}" + (f", {wide} to a column" if wide > 1 else "")
    if found.intervened_at is not None:
        below += "; ▲: intervened"
    return [*lines, axis, Text(f"     {below}", style="dim")]


def _chart_row(row: int, bars: list[float | None], thresholds: Mapping[str, float]) -> Text:
    """One line of the chart: p from row / rows to (row + 1) / rows."""
    names = [name for name, value in thresholds.items() if min(int(value * _ROWS), _ROWS - 1) == row]
    line = Text("1.0 ┤" if row == _ROWS - 1 else "    │")
    for p in bars:
        eighths = 0 if p is None else max(0, min(8, round(8 * (p * _ROWS - row))))
        if p is not None and row == 0:
            eighths = max(1, eighths)  # looked at and harmless differs from not looked at
        block = _BLOCKS[eighths]
        line.append("┄" if names and not eighths else block, style="dim" if p is None or not eighths else colour(p))
    return line.append("┄ " + ", ".join(f"θ_{name}" for name in names), style="dim") if names else line


# ---- as a picture -------------------------------------------------------------------------------------------


def picture(found: Explanation, path: str | Path) -> Path:
    """Writes the picture to `path`, its format by the ending; returns it. Raises ConfigError for an unknown ending."""
    from safealign.reporting.explain_picture import Scene, Segment, Threshold, write_picture  # loads matplotlib

    verdicts = [(entry, False) for entry in found.standing] + [(entry, True) for entry in found.withdrawn]
    segments = [
        Segment(entry.span[0], entry.span[1], entry.p, str(entry.kind), withdrawn)
        for entry, withdrawn in verdicts
        if entry.span is not None
    ]
    thresholds = [Threshold(f"θ_{name}", value) for name, value in found.thresholds.items()]
    scene = Scene(found.pieces, found.first, found.last, found.p, segments, thresholds, found.intervened_at)
    return write_picture(scene, path)
