"""Turns layouts into the tensors that a forward with safety rows needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from safealign.layout.layout import Layout
from safealign.layout.masks import build

IGNORED_LABEL = -100.0


@dataclass
class SafetyBatch:
    """Tensors of a batch of layouts; T text rows, S safety rows.

    `mask` float `[B, 1, T+S, T+S]`; `position_ids` `[B, T+S]`; `valid` bool `[B, S]`; `pool` float `[B, S, T]`
    (rows sum to 1: the weights of the span mean); `last` `[B, S]` (the last row each pools);
    `labels` float `[B, S]` with -100 where there is none; `kinds` `[B, S]` (`RowKind`, -1 where padded).
    """

    mask: torch.Tensor
    position_ids: torch.Tensor
    valid: torch.Tensor
    pool: torch.Tensor
    last: torch.Tensor
    labels: torch.Tensor
    kinds: torch.Tensor

    @property
    def n_safety(self) -> int:
        """Number of safety rows S, padding included."""
        return self.valid.shape[1]

    def to(self, device: torch.device | str) -> SafetyBatch:
        """Moves every tensor to `device`."""
        return SafetyBatch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def as_dict(self, prefix: str = "safety_") -> dict[str, torch.Tensor]:
        """Flat form for data collators, each key with `prefix`."""
        return {prefix + field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def pop_from(cls, inputs: dict[str, Any], prefix: str = "safety_") -> SafetyBatch | None:
        """Takes the keys written by `as_dict` out of `inputs`; None when they are not there."""
        if prefix + "mask" not in inputs:
            return None
        return cls(**{field.name: inputs.pop(prefix + field.name) for field in fields(cls)})


def collate_layouts(layouts: Sequence[Layout], n_text: int | None = None) -> SafetyBatch:
    """Pads the layouts of a batch on the right and builds their tensors."""
    n_text = max(layout.n_text for layout in layouts) if n_text is None else n_text
    n_safety = max(len(layout.safety) for layout in layouts)
    shape = (len(layouts), n_safety)
    batch = SafetyBatch(
        mask=build(layouts, n_text, n_safety),
        position_ids=torch.arange(n_text + n_safety).repeat(len(layouts), 1).clamp_(max=max(n_text - 1, 0)),
        valid=torch.zeros(shape, dtype=torch.bool),
        pool=torch.zeros(*shape, n_text),
        last=torch.zeros(shape, dtype=torch.long),
        labels=torch.full(shape, IGNORED_LABEL),
        kinds=torch.full(shape, -1, dtype=torch.long),
    )
    for index, layout in enumerate(layouts):
        _fill(batch, index, layout, n_text)
    return batch


def _fill(batch: SafetyBatch, index: int, layout: Layout, n_text: int) -> None:
    for block in layout.blocks:
        batch.position_ids[index, block.start : block.end] = torch.arange(block.length)
    for column, row in enumerate(layout.safety):
        batch.position_ids[index, n_text + column] = row.position
        batch.valid[index, column] = True
        batch.kinds[index, column] = int(row.kind)
        batch.last[index, column] = row.last
        if row.label is not None:
            batch.labels[index, column] = row.label
        length = sum(span.length for span in row.pools)
        for span in row.pools:
            batch.pool[index, column, span.start : span.end] = 1.0 / length
