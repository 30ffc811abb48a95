"""From a probe of the rules to a safety row of the layout, for engine and reference alike."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from safealign.decoding.rules import Probe, ProbeKind
from safealign.layout import Rendered, RowKind, SafetyRow, Span, request_row
from safealign.layout.layout import position_of


@dataclass(frozen=True)
class RowSettings:
    """How this model's safety rows are laid out, as it was trained: see `layout`."""

    placement: str = "append"
    window_sees_query: bool = False


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt, a caller's prefix included, in the rules' counting of tokens."""

    rendered: Rendered

    @property
    def n_text(self) -> int:
        """Text rows of the prompt; g_t is text row n_text + t - 1."""
        return len(self.rendered.input_ids)

    @property
    def prefix(self) -> int:
        """Number m of the caller's prefix tokens."""
        return self.rendered.response.length

    @property
    def content(self) -> tuple[Span, ...]:
        """Non-empty spans of all caller-supplied content."""
        return tuple(span for span in self.rendered.content if span.length)

    @property
    def last_query(self) -> int:
        """Last content row of the query, 0 where there is none."""
        return max((span.end - 1 for span in self.content), default=0)

    def span(self, first: int, last: int) -> Span:
        """Text rows of g_first … g_last, both included."""
        return Span(self.n_text + first - 1, self.n_text + last)


@dataclass(eq=False)
class EngineRow:
    """A row of a batch: `index` in the cache, `length` text rows fed so far, `slot` the column in use.

    `opened`: whether a pooled head's memory has the whole prompt; until then `states` are those of its chunks, and
    while its opening probes are evaluated `whole` those of all its rows, `[n_text, depths, H]`.
    """

    prompt: Prompt
    index: int
    length: int = 0
    slot: int = 0
    has_slot: bool = False
    opened: bool = False
    states: list[torch.Tensor] = field(default_factory=list)
    whole: torch.Tensor | None = None


def safety_row(probe: Probe, prompt: Prompt, settings: RowSettings) -> SafetyRow:
    """The safety row of `probe`: what it attends to, what it pools, its position id."""
    if probe.kind is ProbeKind.REQUEST:
        return request_row(prompt.rendered, settings.placement)
    span = prompt.span(probe.start, probe.end)
    if probe.kind is ProbeKind.REFRESH:
        spans = (*prompt.content, span) if span.length else prompt.content
        ready = max((s.end - 1 for s in spans), default=-1)
        return SafetyRow(RowKind.REFRESH, spans, spans, position_of(spans, settings.placement), ready)
    query = prompt.content if settings.window_sees_query else ()
    position = position_of([span], settings.placement)
    return SafetyRow(RowKind.WINDOW, (*query, span), (span,), position, span.end - 1)
