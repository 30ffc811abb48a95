"""Token spans of a rendered conversation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Span(NamedTuple):
    """Half-open range of token rows `[start, end)`."""

    start: int
    end: int

    @property
    def length(self) -> int:
        """Number of rows in the span (never negative)."""
        return max(0, self.end - self.start)


@dataclass(frozen=True)
class Rendered:
    """A conversation as token ids, with the places that the safety rows need to know.

    `input_ids`: all text rows. `query_end`: index of the generation prompt's last token, which is the first
    *response row* (a row whose output predicts a token of the newest assistant turn); rows `[0, query_end)` are
    query rows. `content`: spans of all caller-supplied content among the query rows (system, user, earlier
    assistant turns), template tokens excluded. `response`: tokens of the newest assistant turn, its end-of-turn
    token included when the turn is closed; empty for a prompt. `offsets`: for each response token its character
    range in the response text (the end-of-turn token has an empty range at the end).
    """

    input_ids: tuple[int, ...]
    query_end: int
    content: tuple[Span, ...]
    response: Span
    offsets: tuple[tuple[int, int], ...] = ()
