"""A stream of packed rows dealt out to the ranks: every row to one of them, and as many to each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from safealign.layout.collate import IGNORED_LABEL
from safealign.training.examples import IGNORED

Row = dict[str, Any]


@dataclass(frozen=True)
class RankRows:
    """Called with `ranks`, gives their rows of a pass: of each `batch_size * size` in a row, a batch to every rank.

    A step has the same rows as one of a single process with `size` times the batch. Where a pass does not go round, it
    ends with rows that teach nothing, so that no rank waits for another. Each rank reads and packs the whole stream.
    """

    rows: Callable[[], Iterator[Row]]
    batch_size: int
    size: int

    def __call__(self, ranks: Sequence[int]) -> Iterator[Row]:
        """The rows of these ranks."""
        n, last = 0, None
        for row in self.rows():
            if self._rank(n) in ranks:
                yield row
            n, last = n + 1, row
        while last is not None and n % (self.batch_size * self.size):
            if self._rank(n) in ranks:
                yield without_lesson(last)
            n += 1

    def _rank(self, place: int) -> int:
        return place // self.batch_size % self.size


def without_lesson(row: Row) -> Row:
    """The row with nothing to predict and nothing to judge."""
    nothing = {"labels": [IGNORED] * len(row["labels"]), "verdicts": [IGNORED_LABEL] * len(row["verdicts"])}
    return {**row, **nothing}
