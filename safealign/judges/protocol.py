"""What a guard is: it gives the probability that a request, or an answer to it, is harmful."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class Guard(Protocol):
    """Labels data, judges answers or filters traffic; knows nothing of the model under test."""

    def score(self, prompt: str, response: str | None = None) -> float:
        """Probability in [0, 1] that `prompt` is harmful, or, when given, that `response` to it is."""
        ...


@runtime_checkable
class BatchGuard(Guard, Protocol):
    """A guard that judges many answers for less than one at a time."""

    def score_answers(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """`score` of each pair."""
        ...
