"""An epoch's last batch where it does not go round: every rank trains on its own share of it, and nothing counts twice.

accelerate fills it up with examples from the epoch's beginning, which would weigh twice, and unlike in one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from safealign.layout.collate import IGNORED_LABEL
from safealign.training.accelerators import RaggedGather, standing_in
from safealign.training.examples import IGNORED

NOBODY = -1  # the number of an example that stands for none


def own_rows(n: int, batch_size: int, ranks: int, rank: int) -> int:
    """How many rows of a rank's last batch are examples of its own, of `n` in an epoch: `batch_size` or fewer, or 0."""
    last = n % (batch_size * ranks) or batch_size * ranks
    return min(batch_size, max(0, last - rank * batch_size))


def cut(batch: dict[str, torch.Tensor], rows: int, sides: int = 1) -> dict[str, torch.Tensor]:
    """The batch's first `rows` examples; with none, its first one without a target or a label, and of no number.

    A rank needs something to compute a zero from: the others wait for its gradient. `sides`: rows of each example in
    the batch, those of one side after those of the other.
    """
    n = len(batch["safety_example"]) // sides
    keep = max(rows, 1)
    found = {}
    for name, tensor in batch.items():
        found[name] = torch.cat([part[:keep] for part in tensor.split(n)])
    if not rows:
        for name, nothing in (("labels", IGNORED), ("safety_labels", IGNORED_LABEL), ("safety_example", NOBODY)):
            if name in found:
                found[name] = torch.full_like(found[name], nothing)
    return found


class UnevenMixin:
    """Cuts the last batch of each epoch to the examples that belong to this rank.

    Streams are left alone: theirs end otherwise.
    """

    sides = 1
    _uneven = False

    def get_batch_samples(self, epoch_iterator: Iterator[Any], *args: Any, **kwargs: Any) -> Any:
        """transformers', which counts targets, on what is left of the batches."""
        self._uneven = False
        return super().get_batch_samples(map(self._cut, epoch_iterator), *args, **kwargs)  # type: ignore[misc]

    def _cut(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        trainer: Any = self
        ranks, size = trainer.args.world_size, trainer.args.train_batch_size
        if ranks == 1 or not trainer.accelerator.gradient_state.end_of_dataloader:
            return batch
        if not hasattr(trainer.train_dataset, "__len__") or len(trainer.train_dataset) % (size * ranks) == 0:
            return batch
        self._uneven = True
        return cut(batch, own_rows(len(trainer.train_dataset), size, ranks, trainer.args.process_index), self.sides)

    def counting(self, examples: torch.Tensor) -> AbstractContextManager[None]:
        """While open, TRL gathers its metrics rightly in a step whose batches differ in size from rank to rank."""
        trainer: Any = self
        if not self._uneven or not trainer.model.training:
            return nullcontext()
        return standing_in(trainer, RaggedGather(trainer.accelerator, self.n_examples(examples)))

    def n_examples(self, examples: torch.Tensor) -> int:
        """How many examples (pairs, where each has two rows) a batch holds."""
        return int((examples > NOBODY).sum()) // self.sides
