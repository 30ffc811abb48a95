"""What each rank keeps of an epoch's last batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from safealign.training.accelerators import RaggedGather
from safealign.training.uneven import NOBODY, cut, own_rows


@given(n=st.integers(1, 40), size=st.integers(1, 5), ranks=st.integers(1, 5))
def test_every_example_is_seen_once_over_all_ranks(n: int, size: int, ranks: int) -> None:
    """Against the batches that accelerate deals out, which repeats examples where they do not go round."""
    seen: list[int] = []
    for rank in range(ranks):
        batches = list(BatchSamplerShard(BatchSampler(range(n), size, False), ranks, rank))
        assert len(batches) == -(-n // (size * ranks))
        for batch in batches[:-1]:
            seen += batch
        seen += batches[-1][: own_rows(n, size, ranks, rank)]
    assert sorted(seen) == list(range(n))


def _batch(sides: int) -> dict[str, torch.Tensor]:
    numbers = torch.tensor([7, 8, 9] * sides)
    rows = {"input_ids": numbers[:, None].repeat(1, 4), "safety_labels": torch.ones(3 * sides, 2)}
    return rows | {"labels": numbers[:, None].repeat(1, 4), "safety_example": numbers, "ref": torch.arange(3.0)}


@pytest.mark.parametrize("sides", [1, 2])
def test_the_first_examples_stay_with_all_that_belongs_to_them(sides: int) -> None:
    found = cut(_batch(sides), 2, sides)
    assert found["safety_example"].tolist() == [7, 8] * sides
    assert found["input_ids"][:, 0].tolist() == [7, 8] * sides and found["safety_labels"].eq(1).all()
    assert found["ref"].tolist() == [0, 1]


@pytest.mark.parametrize("sides", [1, 2])
def test_with_none_left_a_stand_in_teaches_nothing(sides: int) -> None:
    found = cut(_batch(sides), 0, sides)
    assert found["safety_example"].tolist() == [NOBODY] * sides == [-1] * sides
    assert found["labels"].eq(-100).all() and found["safety_labels"].lt(0).all()
    assert found["input_ids"].shape == (sides, 4)


class _TwoRanks:
    """What accelerate answers on the first of two ranks, whose other one holds `theirs`."""

    def __init__(self, theirs: torch.Tensor) -> None:
        self.theirs, self.device = theirs, "cpu"

    def pad_across_processes(self, mine: torch.Tensor, pad_index: float) -> torch.Tensor:
        return torch.nn.functional.pad(mine, (0, len(self.theirs) - len(mine)), value=pad_index)

    def gather(self, mine: torch.Tensor) -> torch.Tensor:
        return torch.cat([mine.reshape(-1), self.theirs.reshape(-1)])


def test_results_are_gathered_from_batches_of_any_size() -> None:
    accelerator: Any = RaggedGather(_TwoRanks(torch.tensor([3.0, 4.0])), rows=1)
    assert accelerator.gather(torch.tensor([1.0])).tolist() == [1, 3, 4] and accelerator.device == "cpu"
    accelerator = RaggedGather(_TwoRanks(torch.tensor([3.0, 4.0])), rows=0)
    assert accelerator.gather(torch.tensor([1.0])).tolist() == [3, 4]
    assert RaggedGather(_TwoRanks(torch.tensor(5)), 0).gather_for_metrics(torch.tensor(2)).tolist() == [2, 5]
