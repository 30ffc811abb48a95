"""Layouts of raw documents, one or several packed into a row, for the pretraining stage.

Source: Li & Kim, ICML 2025 (arXiv 2505.17072): in the pretraining stage the safety token sees every token of its
document, and no text sees it. Packing is this project's addition: safety rows stand after the text rows of all
documents, and each document with its safety row is a block of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from safealign.layout.layout import NO_VERSION, Layout, RowKind, SafetyRow, position_of
from safealign.layout.spans import Span


def document_layout(lengths: Sequence[int], labels: Sequence[float | None], placement: str = "append") -> Layout:
    """The layout of documents of so many tokens, one after the other, each with one safety row of its label.

    A safety row's position id counts within its document, as those of the text do. Raises ValueError for an empty
    document or for labels that do not match.
    """
    if not lengths or min(lengths) < 1 or len(labels) != len(lengths):
        raise ValueError(f"each document needs a token and a label (or None), got {lengths} tokens, {labels}")
    ends = list(accumulate(lengths))
    blocks = tuple(Span(end - length, end) for end, length in zip(ends, lengths, strict=True))
    rows = tuple(document_row(block, placement, label) for block, label in zip(blocks, labels, strict=True))
    return Layout(ends[-1], rows, (NO_VERSION,) * ends[-1], ends[-1] - 1, blocks)


def document_row(block: Span, placement: str = "append", label: float | None = None) -> SafetyRow:
    """The verdict on a document: sees and pools all of its tokens. It is the request's row of later stages."""
    position = position_of([Span(0, block.length)], placement)
    return SafetyRow(RowKind.REQUEST, (block,), (block,), position, block.end - 1, label)
