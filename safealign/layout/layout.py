"""A layout: text rows, then safety rows with span, label and position, and the slot version each row sees.

Source: Li & Kim, ICML 2025 (arXiv 2505.17072), sections on the safety token's placement and attention; slot
versions, windows and refresh rows are this project's definitions where the paper is silent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from safealign.layout.spans import Rendered, Span

NO_VERSION = -1
PLACEMENTS = ("append", "prepend")


class RowKind(IntEnum):
    """What a safety row judges."""

    REQUEST = 0
    WINDOW = 1
    REFRESH = 2


@dataclass(frozen=True)
class SafetyRow:
    """One evaluation of the safety token.

    `attends`: text spans it may attend to (itself always). `pools`: spans whose mean state a pooled head reads.
    `position`: position id. `ready`: index of the last text row it depends on; only later text rows may see it.
    `label`: 1.0 malicious, 0.0 benign, None unlabelled.
    """

    kind: RowKind
    attends: tuple[Span, ...]
    pools: tuple[Span, ...]
    position: int
    ready: int
    label: float | None = None

    @property
    def last(self) -> int:
        """Last text row that it pools (0 where it pools none): the newest content token of what it judges."""
        return max((span.end - 1 for span in self.pools if span.length), default=0)


@dataclass(frozen=True)
class Layout:
    """Text rows `0..n_text-1`, then `safety` rows; `sees[i]` is the slot version of text row i, or -1.

    `last_query` is the last content row of the query: no verdict on the request depends on a later row.
    `blocks`: texts packed into one row, each of which sees itself alone and counts its positions from 0; empty
    where the rows are one text.
    """

    n_text: int
    safety: tuple[SafetyRow, ...]
    sees: tuple[int, ...]
    last_query: int
    blocks: tuple[Span, ...] = ()


def position_of(spans: Iterable[Span], placement: str) -> int:
    """Position id of a safety row: 0 for `prepend` (the paper), the id after the span for `append`."""
    if placement == "prepend":
        return 0
    if placement != "append":
        raise ValueError(f"placement must be one of {PLACEMENTS}, got {placement!r}")
    return max((span.end for span in spans if span.length), default=0)


def request_row(rendered: Rendered, placement: str = "append", label: float | None = None) -> SafetyRow:
    """Row 0, the verdict on the request: sees all caller content, no template token, no response (rule 4)."""
    spans = tuple(span for span in rendered.content if span.length)
    ready = max((span.end - 1 for span in spans), default=-1)
    return SafetyRow(RowKind.REQUEST, spans, spans, position_of(spans, placement), ready, label)


def window_row(
    rendered: Rendered,
    start: int,
    end: int,
    placement: str = "append",
    sees_query: bool = False,
    label: float | None = None,
) -> SafetyRow:
    """A window over the response rows `[start, end)` (text row indices); pools over its span alone."""
    if not rendered.query_end < start < end <= len(rendered.input_ids):
        raise ValueError(
            f"a window must lie within the response rows ({rendered.query_end + 1}..{len(rendered.input_ids)}), "
            f"got [{start}, {end})"
        )
    span = Span(start, end)
    query = tuple(s for s in rendered.content if s.length) if sees_query else ()
    return SafetyRow(RowKind.WINDOW, (*query, span), (span,), position_of([span], placement), end - 1, label)


def refresh_row(rendered: Rendered, k: int, placement: str = "append", label: float | None = None) -> SafetyRow:
    """The slot of a refusing answer: the request's content and the first k response tokens (rule 1)."""
    start = rendered.query_end + 1
    content = tuple(s for s in rendered.content if s.length)
    spans = (*content, Span(start, start + k)) if k else content
    ready = start + k - 1 if k else max((s.end - 1 for s in content), default=-1)
    return SafetyRow(RowKind.REFRESH, spans, spans, position_of(spans, placement), ready, label)


def build_layout(
    rendered: Rendered,
    safety: Sequence[SafetyRow],
    *,
    gate: bool = True,
    versions: Sequence[int] = (0,),
    from_row: Sequence[int] | None = None,
) -> Layout:
    """Lays the safety rows after the text and decides which version of the slot each response row sees.

    `versions` are the indices of the rows that write the slot, in the order of time; all others are probes. A
    response row i sees the newest version that was ready before it (`ready < i`), or with `from_row` the newest
    one whose `from_row` is at most i. `gate=False`: no text row sees any. `from_row` may name the very row that
    the version was last to see: after an intervention at S the row x_S is fed again together with its refresh
    row, and each sees the other (layer by layer that is no cycle).
    """
    n_text = len(rendered.input_ids)
    starts = [safety[v].ready + 1 for v in versions] if from_row is None else list(from_row)
    if len(starts) != len(versions):
        raise ValueError("from_row needs one entry for each version")
    sees = [NO_VERSION] * n_text
    if gate:
        for version, start in zip(versions, starts, strict=True):
            if start < safety[version].ready:
                later = safety[version].ready
                raise ValueError(f"text row {start} cannot see a version that depends on the later row {later}")
            for row in range(max(start, rendered.query_end), n_text):
                sees[row] = version
    last_query = max((span.end - 1 for span in rendered.content if span.length), default=0)
    return Layout(n_text, tuple(safety), tuple(sees), last_query)
