"""Several layouts in one: each text a block of its own, with its safety rows and its slot.

Packing is this project's addition; nothing of a text's states, verdicts or slot depends on what it is packed with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from safealign.layout.layout import NO_VERSION, Layout, SafetyRow
from safealign.layout.spans import Span


def pack_layouts(layouts: Sequence[Layout]) -> Layout:
    """The layouts one after the other: all text rows first, then all safety rows, both in order.

    Position ids count within each text, as they do alone. Raises ValueError for none, or for one that is packed
    already.
    """
    if not layouts or any(layout.blocks for layout in layouts):
        raise ValueError("packing takes one layout or more, none of them packed already")
    safety: list[SafetyRow] = []
    sees: list[int] = []
    blocks: list[Span] = []
    for layout in layouts:
        start = len(sees)
        sees += [version if version == NO_VERSION else version + len(safety) for version in layout.sees]
        safety += [_moved(row, start) for row in layout.safety]
        blocks.append(Span(start, start + layout.n_text))
    last_query = blocks[-1].start + layouts[-1].last_query
    return Layout(len(sees), tuple(safety), tuple(sees), last_query, tuple(blocks))


def _moved(row: SafetyRow, by: int) -> SafetyRow:
    attends, pools = (tuple(Span(s.start + by, s.end + by) for s in spans) for spans in (row.attends, row.pools))
    return replace(row, attends=attends, pools=pools, ready=row.ready + by)
