"""Rows of a padded forward that hold nothing, left out: what is fed stands one after another in a single sequence.

A fused step pads every row of the batch to the one that carries most probes, and a ragged batch's prompts are padded to
the longest. Embeddings, projections and feed-forward blocks then work on padding. Packed, they see the real rows alone;
attention alone, where each row of the batch has keys of its own, spreads them out again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

SAVED = 16  # padded rows that must be spared: fewer come almost for free, and spreading costs a little in every layer


@dataclass(frozen=True)
class Packing:
    """`cells` `[P]`: where each packed row stands in the padded grid `[n_rows * size]`."""

    cells: torch.Tensor
    n_rows: int
    size: int

    def spread(self, states: torch.Tensor) -> torch.Tensor:
        """`[1, heads, P, D]` to `[n_rows, heads, size, D]`, zeros where nothing is fed."""
        _, heads, _, width = states.shape
        grid = states.new_zeros(self.n_rows * self.size, heads, width)
        grid[self.cells] = states[0].transpose(0, 1)
        return grid.view(self.n_rows, self.size, heads, width).transpose(1, 2)

    def gather(self, found: torch.Tensor) -> torch.Tensor:
        """`[n_rows, size, …]` to `[1, P, …]`."""
        return found.flatten(0, 1)[self.cells].unsqueeze(0)

    def unpack(self, states: torch.Tensor) -> torch.Tensor:
        """`[1, P, …]` to `[n_rows, size, …]`, zeros where nothing is fed."""
        grid = states.new_zeros(self.n_rows * self.size, *states.shape[2:])
        grid[self.cells] = states[0]
        return grid.unflatten(0, (self.n_rows, self.size))
