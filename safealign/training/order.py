"""The order of the training data: grouped by length, drawn from seed and epoch alone.

transformers draws it from the process's random state, which depends on all that happened before: a run that goes on in
the middle of an epoch would see other batches than the run that it goes on from.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler


class EpochOrder(LengthGroupedSampler):
    """transformers' grouping by length, the same for the same `seed` and `epoch`, on every rank and at any time."""

    def __init__(self, *args: Any, seed: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seed, self.epoch = seed, 0

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        indices: Iterator[int] = super().__iter__()
        return indices


class _Epochs(TrainerCallback):
    """Tells an order which epoch begins."""

    def __init__(self, order: EpochOrder) -> None:
        self.order = order

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """`state.epoch` is a fraction where a run goes on within an epoch."""
        self.order.epoch = int((state.epoch or 0.0) + 1e-6)


class OrderMixin:
    """Replaces a trainer's length-grouped order by one of seed and epoch; other orders are left alone.

    Evaluations leave no trace in the random state either (their data loader draws from it), so that training is the
    same with more of them, or with one that was left out when the scheduler wanted the machine back.
    """

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """TRL's, with the random state put back."""
        state = torch.get_rng_state()
        try:
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)  # type: ignore[misc]
        finally:
            torch.set_rng_state(state)
        return metrics

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        sampler = super()._get_train_sampler(*args, **kwargs)  # type: ignore[misc]
        if type(sampler) is not LengthGroupedSampler:
            return sampler
        trainer: Any = self
        # Of all ranks, so that a step has the same examples on any number of them.
        whole_batch = sampler.batch_size * trainer.args.world_size
        order = EpochOrder(whole_batch, lengths=sampler.lengths, seed=trainer.args.seed)
        trainer.remove_callback(_Epochs)
        trainer.add_callback(_Epochs(order))
        return order
