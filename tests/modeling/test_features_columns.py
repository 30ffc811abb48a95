"""Columns of a wide head's inputs that a narrower head would read."""

from __future__ import annotations

import pytest
import torch

from safealign.modeling.features import feature_columns
from safealign.modeling.safety_token import HeadSettings


def test_columns_are_those_of_the_narrower_head() -> None:
    whole, part = HeadSettings((0.25, 0.5, 1.0), ("row", "mean", "last")), HeadSettings((1.0, 0.25), ("last", "row"))
    hidden, depths = 2, {1: 0, 2: 1, 4: 2}
    states = {p: {d: torch.tensor([10.0 * i + d, 100.0 + i]) for d in depths} for i, p in enumerate(whole.pool)}

    def inputs(settings: HeadSettings) -> torch.Tensor:
        return torch.cat([states[pool][d] for pool in settings.pool for d in settings.blocks(4)])

    assert torch.equal(inputs(whole)[feature_columns(whole, part, 4, hidden)], inputs(part))


def test_states_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="has no states"):
        feature_columns(HeadSettings((0.5,), ("row",)), HeadSettings((1.0,), ("row",)), 4, 2)
