"""A stream of rows over several ranks: none is lost, none comes twice, and all ranks have as many."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from datasets import IterableDataset
from hypothesis import given
from hypothesis import strategies as st

from safealign.training.rank_rows import RankRows


class _Rows:
    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self) -> Iterator[dict[str, Any]]:
        for i in range(self.n):
            yield {"input_ids": [i, i], "labels": [-100, i], "lengths": [2], "verdicts": [1.0]}


def _lessons(rows: list[dict[str, Any]]) -> list[int]:
    """Numbers of the rows that teach something."""
    kept = [row for row in rows if row["labels"][-1] >= 0]
    assert all(row["verdicts"] == [-100.0] for row in rows if row not in kept)
    return [row["labels"][-1] for row in kept]


@given(n=st.integers(0, 30), batch=st.integers(1, 4), size=st.integers(1, 4))
def test_every_row_goes_to_one_rank_and_all_have_as_many(n: int, batch: int, size: int) -> None:
    deal = RankRows(_Rows(n), batch, size)
    dealt = [list(deal([rank])) for rank in range(size)]
    assert len({len(rows) for rows in dealt}) == 1 and len(dealt[0]) % batch == 0
    assert sorted(i for rows in dealt for i in _lessons(rows)) == list(range(n))
    # The rows of a step are those that a single process would have in it.
    for step in range(n // (batch * size)):
        together = [row for rows in dealt for row in rows[step * batch : (step + 1) * batch]]
        assert _lessons(together) == list(range(step * batch * size, (step + 1) * batch * size))


@pytest.mark.parametrize("buffer", [0, 4])
def test_as_shards_of_a_dataset_too_shuffled_or_not_and_anew_in_each_pass(buffer: int) -> None:
    def shards(epoch: int) -> list[list[dict[str, Any]]]:
        found = []
        for rank in range(3):
            whole = IterableDataset.from_generator(RankRows(_Rows(17), 2, 3), gen_kwargs={"ranks": [0, 1, 2]})
            mine = (whole.shuffle(seed=1, buffer_size=buffer) if buffer else whole).shard(3, rank)
            mine.set_epoch(epoch)
            found.append([dict(row) for row in mine])
        return found

    for epoch in (0, 1):
        dealt = shards(epoch)
        assert [len(rows) for rows in dealt] == [6, 6, 6] and dealt == shards(epoch)
        assert sorted(i for rows in dealt for i in _lessons(rows)) == list(range(17))
    assert (shards(0) != shards(1)) == bool(buffer)
