"""Schedules: the steps they name and the gaps they promise."""

from __future__ import annotations

import pytest

from safealign.decoding.schedule import describe, make_schedule, scheduled_steps
from safealign.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "parameters", "steps"),
    [
        ("first", {}, []),
        ("every", {}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ("periodic", {"interval": 3}, [3, 6]),
        ("annealing", {"floor": 4}, [1, 3, 7]),
        ("annealing", {"floor": 1}, [1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_steps(name: str, parameters: dict[str, int], steps: list[int]) -> None:
    assert list(scheduled_steps(make_schedule(name, **parameters), 8)) == steps


def test_annealing_doubles_up_to_its_floor() -> None:
    assert list(scheduled_steps(make_schedule("annealing"), 160)) == [1, 3, 7, 15, 31, 63, 95, 127, 159]


@pytest.mark.parametrize("name", ["every", "periodic", "annealing"])
@pytest.mark.parametrize("size", [1, 2, 5, 32, 33])
def test_no_gap_is_larger_than_promised(name: str, size: int) -> None:
    schedule = make_schedule(name, interval=size, floor=size)
    steps = [0, *scheduled_steps(schedule, 500)]
    assert max(b - a for a, b in zip(steps, steps[1:], strict=False)) == schedule.largest_gap()


def test_first_promises_nothing() -> None:
    assert make_schedule("first").largest_gap() is None
    assert "never" in describe(make_schedule("first"))
    assert describe(make_schedule("every")) == "every: at most 1 token between verdicts"


@pytest.mark.parametrize("wrong", [("hourly", {}), ("periodic", {"interval": 0}), ("annealing", {"floor": 0})])
def test_refuses_nonsense(wrong: tuple[str, dict[str, int]]) -> None:
    with pytest.raises(ConfigError):
        make_schedule(wrong[0], **wrong[1])
