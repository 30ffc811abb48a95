"""Supervised fine-tuning with the safety objective: TRL's SFTTrainer extended through hooks."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset
from trl import SFTTrainer

from safealign.training.checkpoints.saving import CheckpointMixin
from safealign.training.collator import EXAMPLE_KEY, LENGTH_KEY
from safealign.training.examples import Example
from safealign.training.health import HealthMixin
from safealign.training.kept_examples import KeptExamples
from safealign.training.order import OrderMixin
from safealign.training.safety_loss import SafetyLossMixin


class SafetySFTTrainer(SafetyLossMixin, HealthMixin, CheckpointMixin, OrderMixin, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer with the safety loss; its evaluation also reports how well the safety rows judge."""


def example_dataset(examples: Sequence[Example], first: int = 0) -> Dataset:
    """A dataset of ids and labels, whose `example` counts from `first`; TRL skips its own tokenisation when it finds
    them. What lies on disk stays there.
    """
    numbers = list(range(first, first + len(examples)))
    if isinstance(examples, KeptExamples):
        return examples.rows.select_columns(["input_ids", "labels", LENGTH_KEY]).add_column(EXAMPLE_KEY, numbers)
    return Dataset.from_dict(
        {
            "input_ids": [list(example.input_ids) for example in examples],
            "labels": [list(example.labels) for example in examples],
            LENGTH_KEY: [example.n_tokens for example in examples],
            EXAMPLE_KEY: numbers,
        }
    )
