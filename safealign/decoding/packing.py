"""Rows of a padded forward that hold nothing, left out: what is fed stands one after another in a single sequence.

A fused step pads every row of the batch to the one that carries most probes, and a ragged batch's prompts are padded to
the longest. Embeddings, projections and feed-forward blocks then work on padding. Packed, they see the real rows alone;
attention alone, where each row of the batch has keys of its own, spreads them out again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

SAVED = 8  # padded rows that must be spared: fewer come almost for free, and spreading costs a little in every layer


@dataclass(frozen=True)
class Packing:
    """`cells` `[P]`: where each packed row stands in the padded grid `[n_rows * size]`."""

    cells: torch.Tensor
    n_rows: int
    size: int

    def spread(self, states: torch.Tensor) -> torch.Tensor:
        """`[1, heads, P, D]` to `[n_rows, heads, size, D]`, zeros where nothing is fed."""
        return self.unpack(states.transpose(1, 2)).transpose(1, 2)

    def gather(self, found: torch.Tensor) -> torch.Tensor:
        """`[n_rows, size, …]` to `[1, P, …]`."""
        # Whole rows at a time: advanced indexing, which copies value by value, takes several times as long.
        rows = found.reshape(self.n_rows * self.size, -1).index_select(0, self.cells)
        return rows.view(1, -1, *found.shape[2:])

    def unpack(self, states: torch.Tensor) -> torch.Tensor:
        """`[1, P, …]` to `[n_rows, size, …]`, zeros where nothing is fed."""
        rows = states.reshape(states.shape[1], -1)
        grid = rows.new_zeros(self.n_rows * self.size, rows.shape[1]).index_copy_(0, self.cells, rows)
        return grid.view(self.n_rows, self.size, *states.shape[2:])
