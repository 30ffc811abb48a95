"""How well a scorer picks: beside a random pick, and beside the best that any pick could do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from safealign.ranking.lists import StateList

Score = Callable[[StateList], Sequence[float]]


@dataclass
class Picks:
    """Of each list whether the pick was good, what share of its answers is, and whether any is."""

    hits: list[bool] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    possible: list[bool] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        """Share of good picks; nan without lists."""
        return _mean(self.hits)

    @property
    def random(self) -> float:
        """What a random pick would have on average."""
        return _mean(self.shares)

    @property
    def oracle(self) -> float:
        """What no pick can exceed."""
        return _mean(self.possible)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers; null where there was no list."""
        values = {"accuracy": self.accuracy, "random": self.random, "oracle": self.oracle}
        return {"n": len(self.hits)} | {name: value if self.hits else None for name, value in values.items()}


def best(scores: Sequence[float]) -> int:
    """Index of the highest score, the first of equal ones."""
    return max(range(len(scores)), key=lambda i: (scores[i], -i))


def picks(score: Score, lists: Sequence[StateList]) -> Picks:
    """What `score` picks from each list."""
    found = Picks()
    for one in lists:
        found.hits.append(bool(one.good[best(score(one))]))
        found.shares.append(float(one.good.float().mean()))
        found.possible.append(bool(one.good.any()))
    return found


def by_label(score: Score, lists: Sequence[StateList]) -> dict[str, Picks]:
    """Picks for requests of each label that there is."""
    labels = sorted({one.label for one in lists})
    return {label: picks(score, [one for one in lists if one.label == label]) for label in labels}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
