"""What TRL gets in place of its accelerator where the accelerator's own answer would not do with several ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class StandIn:
    """An accelerator in all but what a subclass says."""

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self.accelerator, name)


class EveryRankWrites(StandIn):
    """For a result that all ranks hold, and the main one writes to a temporary folder of its own for all to read.

    The others would not find it there: each writes and reads its own.
    """

    is_main_process = True


class RaggedGather(StandIn):
    """For a batch that has more rows on one rank than on another; `rows`: how many of this one's count.

    accelerate gathers tensors of one shape alone, and of an epoch's last batch it takes the first results off the
    first ranks for those of the first examples, be they sums of a rank's whole batch.
    """

    def __init__(self, accelerator: Any, rows: int) -> None:
        super().__init__(accelerator)
        self.rows = rows

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """What counts, of all ranks: scalars as `[ranks]`, rows `[B]` (whose B may differ) one after the other."""
        if tensor.dim() == 0:
            every: torch.Tensor = self.accelerator.gather(tensor)
            return every
        mine = tensor[: self.rows].float()
        found = self.accelerator.gather(self.accelerator.pad_across_processes(mine, pad_index=float("nan")))
        return found[~found.isnan()].to(tensor.dtype)

    gather_for_metrics = gather


@contextmanager
def standing_in(trainer: Any, stand_in: StandIn) -> Iterator[None]:
    """While open, `trainer.accelerator` is `stand_in`."""
    trainer.accelerator = stand_in
    try:
        yield
    finally:
        trainer.accelerator = stand_in.accelerator
