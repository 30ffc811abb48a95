"""A text and the places to read in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from safealign.errors import DataError
from safealign.layout import Layout, Rendered, Span
from safealign.modeling.feature_cache import digest_of

Place = tuple[Span, ...]


@dataclass(frozen=True)
class Text:
    """Token ids and the places to read in them, each some spans of rows.

    With a `layout` the forward carries its safety rows, and the slot that it shows; a place's `row` is then the state
    of the safety row of the same number. Without one the text is read as the bare model reads it.
    """

    input_ids: Sequence[int]
    places: tuple[Place, ...]
    layout: Layout | None = None

    @classmethod
    def prompt(cls, rendered: Rendered) -> Text:
        """The instruction: all rows up to the one that predicts the answer's first token, template included."""
        return cls(rendered.input_ids[: rendered.query_end + 1], ((Span(0, rendered.query_end + 1),),))

    @classmethod
    def answer(cls, rendered: Rendered, tokens: Sequence[int] = ()) -> Text:
        """The answer behind the same instruction: a prefill that `rendered` ends with, and `tokens`.

        Leave an end of turn out. Of an answer without any token, the row that would predict its first is read.
        """
        ids = (*rendered.input_ids, *tokens)
        first = min(rendered.query_end + 1, len(ids) - 1)
        return cls(ids, ((Span(first, len(ids)),),))

    @classmethod
    def of_layout(cls, input_ids: Sequence[int], layout: Layout) -> Text:
        """What the layout's safety rows pool, one place each."""
        return cls(input_ids, tuple(row.pools for row in layout.safety), layout)

    @classmethod
    def at_rows(cls, input_ids: Sequence[int], rows: Sequence[int], layout: Layout | None = None) -> Text:
        """Single rows of the text, one place each (read with the pool `last`)."""
        return cls(input_ids, tuple((Span(row, row + 1),) for row in rows), layout)

    @property
    def n_rows(self) -> int:
        """Rows of its forward: tokens and safety rows."""
        return len(self.input_ids) + (len(self.layout.safety) if self.layout is not None else 0)

    def key(self, token: str = "") -> str:
        """Hash of ids, places and layout, and of the safety token's digest `token` where a safety row takes part."""
        content: list[Any] = [list(self.input_ids), [[list(span) for span in place] for place in self.places]]
        if self.layout is not None:
            rows = [[[list(span) for span in row.attends], row.position] for row in self.layout.safety]
            content += [rows, list(self.layout.sees), [list(block) for block in self.layout.blocks]]
            content += [token if rows else ""]
        return digest_of(*content)


def unpadded(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> list[tuple[int, ...]]:
    """The texts' ids of a batch `[B, T]` that is padded on either side.

    Raises DataError for a mask with a hole within a text, or without a text.
    """
    kept = attention_mask.bool()
    begins = torch.nn.functional.pad(kept.int(), (1, 0)).diff(dim=1) == 1
    if bool((begins.sum(dim=1) != 1).any()):
        raise DataError("each row of an attention mask needs one text without holes: pad on one side of it")
    return [tuple(ids[keep].tolist()) for ids, keep in zip(input_ids, kept, strict=True)]


def pad_ids(rows: Sequence[Sequence[int]], value: int = 0) -> torch.Tensor:
    """Pads id sequences on the right to one `[B, T]` tensor; the mask, not the value, hides the padding."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *([value] * (width - len(row)))] for row in rows])
