"""Supervised fine-tuning with the safety objective: TRL's SFTTrainer extended through hooks."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from trl import SFTTrainer

from safealign.training.collator import EXAMPLE_KEY
from safealign.training.examples import Example
from safealign.training.safety_loss import SafetyLossMixin
from safealign.training.verdict_metrics import verdict_metrics

LENGTH_KEY = "length"


class SafetySFTTrainer(SafetyLossMixin, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer whose evaluation also reports how well the safety rows judge."""

    categories: dict[int, str] | None = None

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """TRL's evaluation, then AUROC and recall of request and window verdicts under `eval_safety/`."""
        self.take_verdicts()
        metrics = super().evaluate(*args, **kwargs)
        found = verdict_metrics(self.take_verdicts(), self.categories or {})
        extra = {f"eval_safety/{name}": value for name, value in found.items()}
        if extra:
            self.log(dict(extra))
        return {**metrics, **extra}


def example_dataset(examples: list[Example]) -> Dataset:
    """A dataset of ids and labels; TRL skips its own tokenisation when it finds them."""
    return Dataset.from_dict(
        {
            "input_ids": [list(example.input_ids) for example in examples],
            "labels": [list(example.labels) for example in examples],
            LENGTH_KEY: [example.n_tokens for example in examples],
            EXAMPLE_KEY: list(range(len(examples))),
        }
    )
