"""A second opinion on the label of a sampled answer: any guard, asked for p(harmful)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from safealign.data.records import MALICIOUS
from safealign.errors import DataError
from safealign.judges.protocol import Guard


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

    def agrees(self, label: str, prompt: str, answer: str) -> bool:
        """Whether the guard finds the answer to be what `label` says. Raises DataError for no probability."""
        p = self._guard.score(prompt, answer)
        if not 0.0 <= p <= 1.0:
            raise DataError(f"{type(self._guard).__name__} must give a probability in [0, 1], and gave {p}")
        return (p >= self.threshold) == (label == MALICIOUS)

    @cached_property
    def _guard(self) -> Guard:
        return self.make()
