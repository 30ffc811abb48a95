"""Seconds in collectives: what overlaps counts once."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from safealign.training import communication
from safealign.training.communication import Collectives


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Its one entry is what time it is."""
    now = [0.0]
    monkeypatch.setattr(communication.time, "monotonic", lambda: now[0])
    return now


def test_two_at_once_count_once_and_a_pause_does_not_count(clock: list[float]) -> None:
    found = Collectives()
    for time, move in ((0, found.begin), (2, found.begin), (3, found.end), (7, found.end), (20, found.begin)):
        clock[0] = float(time)
        move()
    clock[0] = 21.0
    found.end()
    assert found.seconds == 7.0 + 1.0


def test_one_that_fails_is_over(clock: list[float]) -> None:
    found = Collectives()

    def broken(seconds: float) -> None:
        clock[0] += seconds
        raise RuntimeError("a rank has gone")

    for _ in range(2):
        with pytest.raises(RuntimeError):
            found.timed(broken)(1.5)
        clock[0] += 10.0
    assert found.seconds == 3.0


def test_one_process_has_none_to_watch() -> None:
    accelerator: Any = object()
    assert Collectives.of(nn.Linear(2, 2), accelerator) is None
