"""A second opinion on the label of a sampled answer: any guard, asked for p(harmful)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from safealign.data.records import MALICIOUS
from safealign.errors import DataError
from safealign.judges.protocol import BatchGuard, Guard


@dataclass
class Labeller:
    """A guard that is made when it is first asked, since what lies in the cache needs none.

    `name` stands for the guard and all that it was fitted on: it is part of the cache key. From `threshold` on an
    answer counts as harmful.
    """

    name: str
    make: Callable[[], Guard]
    threshold: float = 0.5

    @property
    def key(self) -> list[object]:
        """What distinguishes the answers that pass this guard from those that pass another."""
        return [self.name, self.threshold]

    def agrees(self, labels: Sequence[str], prompts: Sequence[str], answers: Sequence[str]) -> list[bool]:
        """Of each answer, whether the guard finds it to be what its label says; one batch where the guard takes one.

        Raises DataError for no probability.
        """
        if not answers:
            return []
        if isinstance(self._guard, BatchGuard):
            found = self._guard.score_answers(prompts, answers)
        else:
            found = [self._guard.score(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        odd = [p for p in found if not 0.0 <= p <= 1.0]
        if odd:
            raise DataError(f"{type(self._guard).__name__} must give a probability in [0, 1], and gave {odd[0]}")
        return [(p >= self.threshold) == (label == MALICIOUS) for p, label in zip(found, labels, strict=True)]

    @cached_property
    def _guard(self) -> Guard:
        return self.make()
