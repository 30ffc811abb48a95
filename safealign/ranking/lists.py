"""Lists of answers as a ranker sees them: states and labels, padded to batches, shortened for training."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class StateList:
    """An instruction's states `[width]`, its m answers' `[m, width]`, and which of them are good (bool `[m]`).

    `label`, `source`, `id`: the request's. A good answer to a benign request helps, one to a malicious request does
    not do what was asked. `unaided`: indices of the answers whose first words are the model's own.
    """

    instruction: torch.Tensor
    answers: torch.Tensor
    good: torch.Tensor
    label: str = ""
    source: str = ""
    id: str = ""
    unaided: tuple[int, ...] = ()

    @property
    def is_mixed(self) -> bool:
        """Whether there is something to choose: a good answer and another."""
        return bool(self.good.any()) and not bool(self.good.all())

    def part(self, rows: Sequence[int]) -> StateList:
        """The list with some of its answers, in this order."""
        at = list(rows)
        return StateList(self.instruction, self.answers[at], self.good[at], self.label, self.source, self.id)


def unaided(lists: Sequence[StateList]) -> list[StateList]:
    """Their answers without a given opening, where both kinds are left: a good one is not told by known first words."""
    return [part for part in (one.part(one.unaided) for one in lists) if part.is_mixed]


@dataclass(frozen=True)
class Batch:
    """`instruction` `[B, width]`, `answers` `[B, m, width]`, `labels` fp32 and `mask` `[B, m]`."""

    instruction: torch.Tensor
    answers: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor


def collate(lists: Sequence[StateList]) -> Batch:
    """Lists of any lengths, padded behind."""
    most = max(len(one.good) for one in lists)

    def padded(rows: torch.Tensor) -> torch.Tensor:
        gap = most - len(rows)
        return torch.cat([rows, rows.new_zeros(gap, *rows.shape[1:])]) if gap else rows

    there = torch.tensor([[i < len(one.good) for i in range(most)] for one in lists])
    return Batch(
        torch.stack([one.instruction for one in lists]).float(),
        torch.stack([padded(one.answers) for one in lists]).float(),
        torch.stack([padded(one.good) for one in lists]).float(),
        there,
    )


def drawn(one: StateList, length: int, rng: random.Random) -> StateList:
    """At most `length` of the answers in random order, a good one and another among them."""
    rows = list(range(len(one.good)))
    good = [row for row in rows if bool(one.good[row])]
    others = [row for row in rows if not bool(one.good[row])]
    chosen = [rng.choice(good), rng.choice(others)]
    rest = [row for row in rows if row not in chosen]
    chosen += rng.sample(rest, min(len(rest), max(0, length - 2)))
    rng.shuffle(chosen)
    return one.part(chosen)
