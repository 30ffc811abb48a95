"""The key/value cache with the safety slot: ragged rows, in place, without clones.

Each row has columns of its own: two for the slot, then its text, then scratch room for rows that leave no
trace. Because the explicit mask says who sees what, physical order is irrelevant: the slot's two columns take
turns (a new verdict is written into the one that is not in use, so text of the same forward can see either),
withdrawn tokens are simply overwritten, and a finished row is replaced by the last one. What a row leaves behind is
wiped: a mask adds to scores and multiplies no value away, so one that is no number would reach whoever comes next.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache, DynamicLayer

SLOT_COLUMNS = 2  # the first text column
MARGIN = 64  # columns that a growing cache has to spare


class SlotCache(Cache):
    """A `transformers` cache whose `update` writes where `aim` said and returns the aimed rows' columns.

    Buffers are `[rows, columns, heads, D]`, so that a token's keys are one piece of memory. With a `capacity` (columns)
    those of `max_rows` rows are made at once, at the first forward, and grow only where a row outgrows them. Without
    one they follow the text: they begin with the rows and columns in use, grow by a factor (so that copying costs a
    constant per token), and are given back when the last row leaves. Every layer grows by itself, so that one that
    finds no memory leaves a cache which the other rows can go on with.
    """

    def __init__(self, max_rows: int, capacity: int = 0) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.max_rows, self.n_rows, self.capacity = max_rows, 0, capacity
        self._buffers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._rows: torch.Tensor | None = None  # those of the present forward; None for all in use
        self._index = self._key_rows = self._columns = torch.empty(0)
        self._at: dict[int, torch.Tensor] = {}
        self._width, self._fresh = 0, False

    def aim(
        self, rows: Sequence[int], places: tuple[torch.Tensor, torch.Tensor], width: int, *, fresh: bool = False
    ) -> None:
        """Prepares a forward of `rows`, which sees columns `0..width-1` of them.

        `places`: row and column `[P]` of each new key. A `fresh` one sees its own keys alone, as they are given.
        """
        self._fresh, self._width = fresh, width
        self._index, (self._key_rows, self._columns) = torch.tensor(rows, device=places[0].device), places
        everyone = len(rows) == self.n_rows and list(rows) == list(range(self.n_rows))
        self._rows = None if everyone else self._index
        self._at = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores `[N, heads, Q, D]`, N·Q = P, at the aimed places; returns `[N, heads, width, D]` of keys and of
        values (what was given, if fresh).
        """
        if not self._width:
            raise RuntimeError("aim the slot cache before a forward")
        if layer_idx == len(self._buffers):
            self._buffers.append((self._empty(key_states), self._empty(value_states)))
        keys, values = self._buffers[layer_idx]
        keys, values = self._buffers[layer_idx] = self._with_room(keys), self._with_room(values)
        self._write(keys, key_states)
        self._write(values, value_states)
        if self._fresh:
            return key_states, value_states
        return self._seen(keys), self._seen(values)

    def admit(self, n: int) -> int:
        """Takes `n` free rows behind those in use; returns the first one's index."""
        if self.n_rows + n > self.max_rows:
            raise ValueError(f"the cache has {self.max_rows} rows, {self.n_rows} in use: no room for {n} more")
        self.n_rows += n
        return self.n_rows - n

    def drop(self, row: int) -> None:
        """Frees `row`: the last row in use takes its place."""
        last = self.n_rows - 1
        for buffer in itertools.chain.from_iterable(self._buffers):
            if last < len(buffer):  # a layer that found no memory has not grown
                buffer[row] = buffer[last]
                buffer[last] = 0
        self.n_rows = last
        if not last and not self.capacity:
            self._buffers = []

    def copy(self, row: int, others: Sequence[int], columns: int) -> None:
        """Writes the first `columns` of `row` into other rows in use."""
        to = list(others)
        for keys, values in self._buffers:
            keys[to, :columns] = keys[row, :columns]
            values[to, :columns] = values[row, :columns]

    def restart(self, max_rows: int, capacity: int) -> bool:
        """Frees every row of a preallocated cache that is large enough to be used again; says whether it is."""
        fits = 0 < capacity <= self.capacity and max_rows <= self.max_rows
        if fits:
            for buffer in itertools.chain.from_iterable(self._buffers):
                buffer[: self.n_rows] = 0
            self.n_rows = 0
        return fits

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns in use by the present forward (positions and mask are always explicit)."""
        return len(self._columns) // len(self._index) if self._fresh else self._width

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Key length and offset, as mask builders ask for them."""
        return self.get_seq_length(layer_idx), 0

    def _write(self, buffer: torch.Tensor, states: torch.Tensor) -> None:
        _, heads, _, d = states.shape
        at = self._places(buffer.shape[1])
        buffer.view(-1, heads, d).index_copy_(0, at, states.transpose(1, 2).reshape(-1, heads, d))

    def _seen(self, buffer: torch.Tensor) -> torch.Tensor:
        seen = buffer[:, : self._width]  # before rows are copied: a short row needs no long row's columns
        return (seen[: self.n_rows] if self._rows is None else seen[self._rows]).transpose(1, 2)

    def _places(self, columns: int) -> torch.Tensor:
        """Where the new keys go in a buffer of so many columns; the same for every layer."""
        if columns not in self._at:
            self._at[columns] = self._key_rows * columns + self._columns
        return self._at[columns]

    def _empty(self, states: torch.Tensor) -> torch.Tensor:
        rows = self.max_rows if self.capacity else 0
        return states.new_zeros(rows, self.capacity, states.shape[1], states.shape[3])

    def _with_room(self, buffer: torch.Tensor) -> torch.Tensor:
        """The buffer, grown where it is too small: to half as many columns again, to twice as many rows."""
        rows, columns = buffer.shape[:2]
        wanted_rows = min(self.max_rows, max(self.n_rows, 2 * rows)) if self.n_rows > rows else rows
        wanted_columns = max(self._width + MARGIN, columns * 3 // 2) if self._width > columns else columns
        if (wanted_rows, wanted_columns) == (rows, columns):
            return buffer
        return torch.nn.functional.pad(buffer, (0, 0, 0, 0, 0, wanted_columns - columns, 0, wanted_rows - rows))
