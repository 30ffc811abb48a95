"""The tensors of one cached forward: who is fed where, and which columns each row may attend to."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from safealign.decoding.packing import SAVED, Packing
from safealign.decoding.rows import EngineRow, RowSettings, safety_row
from safealign.decoding.rules import Probe
from safealign.decoding.slot import SLOT_COLUMNS
from safealign.layout import SafetyRow, Span


@dataclass(frozen=True)
class Feed:
    """What a row does in a forward: text `tokens`, then `probes` over all text fed so far.

    `sees_new`: this forward's own text rows see the slot that its writing probe makes (the prompt's forward,
    and an intervention's); otherwise they see the slot as it was.
    """

    row: EngineRow
    tokens: Sequence[int] = ()
    probes: Sequence[Probe] = ()
    sees_new: bool = False


class Plan:
    """Text padded on the left, safety rows after it, padded on the right.

    A fed token's column is its text row index plus SLOT_COLUMNS; the writing probe goes to the slot column that is
    not in use; other safety rows and padding go to scratch columns behind the text. What a row attends to is one
    range of columns and one column besides (a slot's, or its own), so that no mask is built cell by cell; only the
    further spans of rows that see the request's content are opened one by one.

    `packing` says which rows of that grid are real, where `packs` allows it and enough are not; `input_ids` and
    `positions` are then `[1, P]`, all texts before all safety rows. `fresh`: nothing was fed before and nothing is
    packed, so that rows attend to the keys of this forward alone, in its own order.
    """

    def __init__(
        self, feeds: Sequence[Feed], settings: RowSettings, gate: bool, device: torch.device, *, packs: bool = False
    ) -> None:
        self.feeds = feeds
        self.safety: list[list[SafetyRow]] = [
            [safety_row(probe, feed.row.prompt, settings) for probe in feed.probes] for feed in feeds
        ]
        self.n_text = max(len(feed.tokens) for feed in feeds)
        self.n_safety = max(len(rows) for rows in self.safety)
        rows = [self._row(feed, safety, gate) for feed, safety in zip(feeds, self.safety, strict=True)]
        size = self.n_text + self.n_safety
        table = torch.tensor(rows, device=device).reshape(len(feeds), 6, size)
        ids, self.columns, self.positions, first, end, besides = table.unbind(1)
        self.input_ids = ids[:, : self.n_text]
        self.width = 1 + max(
            max(SLOT_COLUMNS + feed.row.length, *row[size : 2 * size]) for feed, row in zip(feeds, rows, strict=True)
        )
        at = torch.arange(self.width, device=device)
        allowed = (at >= first.unsqueeze(-1)) & (at < end.unsqueeze(-1))
        self.allowed = (allowed | (at == besides.unsqueeze(-1))).scatter_(2, self.columns.unsqueeze(-1), True)
        # Which text row each row and column is, negative for the slot's and for safety rows (`masks.windowed`).
        self.text_columns = at - SLOT_COLUMNS
        self.text_rows = self.columns - SLOT_COLUMNS
        self.text_rows[:, self.n_text :] = -1
        self._open_further_spans()
        self.packing = self._pack(device) if packs else None
        self.fresh = self.packing is None and not any(feed.row.length or feed.row.has_slot for feed in feeds)
        if self.fresh:
            self.text_columns = self.text_rows
            self.allowed = self.allowed.gather(2, self.columns.unsqueeze(1).expand(-1, size, -1))

    @property
    def n_probes(self) -> int:
        """Safety rows behind the text of each sequence that the model is given."""
        return self.n_safety if self.packing is None else sum(len(rows) for rows in self.safety)

    @property
    def places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Cache row and column `[P]` of each row that the model is given, one sequence after the other."""
        rows = torch.tensor([feed.row.index for feed in self.feeds], device=self.columns.device)
        rows, columns = rows[:, None].expand_as(self.columns).flatten(), self.columns.flatten()
        return (rows, columns) if self.packing is None else (rows[self.packing.cells], columns[self.packing.cells])

    def grid(self, states: torch.Tensor) -> torch.Tensor:
        """What the model made of its rows, as `[N, T+S, …]`."""
        return states if self.packing is None else self.packing.unpack(states)

    def _pack(self, device: torch.device) -> Packing | None:
        """Leaves padding out of ids and positions, if there is enough of it."""
        n_rows, size = self.columns.shape
        n_real = sum(len(feed.tokens) + len(feed.probes) for feed in self.feeds)
        if n_rows * size - n_real < SAVED:
            return None
        text = [
            at * size + i
            for at, feed in enumerate(self.feeds)
            for i in range(self.n_text - len(feed.tokens), self.n_text)
        ]
        safety = [at * size + self.n_text + i for at, rows in enumerate(self.safety) for i in range(len(rows))]
        ends = itertools.accumulate(len(feed.tokens) for feed in self.feeds)
        self.last_text = torch.tensor([max(0, end - 1) for end in ends], device=device)
        cells = torch.tensor([*text, *safety], device=device)
        grid = torch.nn.functional.pad(self.input_ids, (0, self.n_safety))
        self.input_ids = grid.flatten()[cells[: len(text)]].unsqueeze(0)
        self.positions = self.positions.flatten()[cells].unsqueeze(0)
        return Packing(cells, n_rows, size)

    def _row(self, feed: Feed, safety: Sequence[SafetyRow], gate: bool) -> list[int]:
        """Ids, columns, positions, first and end of the range, and the column besides: six times `[T+S]`."""
        n_fed, start, row = len(feed.tokens), feed.row.length, feed.row
        pads, missing = self.n_text - n_fed, self.n_safety - len(safety)
        text = range(start, start + n_fed)
        scratch = iter(range(SLOT_COLUMNS + start + n_fed, SLOT_COLUMNS + start + self.n_text + self.n_safety))
        probe_columns = [1 - row.slot if probe.writes else next(scratch) for probe in feed.probes]
        before, after = [next(scratch) for _ in range(pads)], [next(scratch) for _ in range(missing)]
        nowhere, beyond = [0] * pads, [0] * missing
        ranges = [_columns(one.attends[0]) if one.attends else (0, 0) for one in safety]
        ids = [*nowhere, *feed.tokens, *([0] * self.n_safety)]
        columns = [*before, *(SLOT_COLUMNS + i for i in text), *probe_columns, *after]
        positions = [*nowhere, *text, *(one.position for one in safety), *beyond]
        first = [*nowhere, *([SLOT_COLUMNS] * n_fed), *(start for start, _ in ranges), *beyond]
        end = [*nowhere, *(SLOT_COLUMNS + i + 1 for i in text), *(end for _, end in ranges), *beyond]
        slot = self._slot_column(feed, gate)
        seen = row.prompt.rendered.query_end
        besides = [*([-1] * pads), *(slot if i >= seen else -1 for i in text), *([-1] * self.n_safety)]
        return [*ids, *columns, *positions, *first, *end, *besides]

    @staticmethod
    def _slot_column(feed: Feed, gate: bool) -> int:
        """The slot column that this forward's response rows see; -1 for none."""
        new = feed.sees_new and any(probe.writes for probe in feed.probes)
        if not gate or not (feed.row.has_slot or new):
            return -1
        return 1 - feed.row.slot if new else feed.row.slot

    def _open_further_spans(self) -> None:
        for n, safety in enumerate(self.safety):
            for index, row in enumerate(safety):
                for span in row.attends[1:]:
                    self.allowed[n, self.n_text + index, slice(*_columns(span))] = True


def _columns(span: Span) -> tuple[int, int]:
    """First and end column of a span of text rows."""
    return SLOT_COLUMNS + span.start, SLOT_COLUMNS + span.end
