"""Schedules: at which generated tokens a rule-2 window is evaluated.

Source: Li & Kim, ICML 2025 (arXiv 2505.17072); the annealing floor is this project's. A schedule is a
function of the step alone, never of the windows' thresholds or of a row's state, so that calibration sees the
windows that deployment sees; the cascade (this project's) also depends on the token head, whose own threshold is set
before the windows' are calibrated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from safealign.errors import ConfigError


class Schedule(Protocol):
    """When a window is looked at; step t is the t-th generated token, counted from 1."""

    def is_scheduled(self, step: int) -> bool:
        """Whether the window that ends at `step` is evaluated."""
        ...

    def largest_gap(self) -> int | None:
        """The most tokens between two verdicts; None when the answer is never looked at."""
        ...

    @property
    def listens(self) -> bool:
        """Whether the token head may ask for further windows."""
        ...


class _Deaf:
    """A schedule that is fixed beforehand."""

    @property
    def listens(self) -> bool:
        """No: windows come at the scheduled steps alone."""
        return False


@dataclass(frozen=True)
class First(_Deaf):
    """The request's verdict only: no window, not even at the end of the answer."""

    def is_scheduled(self, step: int) -> bool:
        """Never."""
        return False

    def largest_gap(self) -> int | None:
        """None: there is no bound."""
        return None


@dataclass(frozen=True)
class Periodic(_Deaf):
    """Every `interval` tokens."""

    interval: int = 10

    def is_scheduled(self, step: int) -> bool:
        """True at the multiples of the interval."""
        return step > 0 and step % self.interval == 0

    def largest_gap(self) -> int | None:
        """The interval."""
        return self.interval


@dataclass(frozen=True)
class Annealing(_Deaf):
    """Intervals 1, 2, 4, … that double up to `floor`: steps 1, 3, 7, 15, 31, 63, 95, … for a floor of 32."""

    floor: int = 32

    def is_scheduled(self, step: int) -> bool:
        """True at the sums of the first intervals."""
        if step <= 0:
            return False
        doubled, at = 1, 0
        while doubled < self.floor and at < step:
            at += doubled
            doubled *= 2
        return at == step or (at < step and (step - at) % self.floor == 0)

    def largest_gap(self) -> int | None:
        """The floor."""
        return self.floor


@dataclass(frozen=True)
class Every(_Deaf):
    """Each token."""

    def is_scheduled(self, step: int) -> bool:
        """True from the first token on."""
        return step > 0

    def largest_gap(self) -> int | None:
        """One token."""
        return 1


@dataclass(frozen=True)
class Cascade:
    """Every `floor` tokens, and wherever the token head stirs: it reads each token's own state, which is free."""

    floor: int = 32

    @property
    def listens(self) -> bool:
        """Yes: a stir at g_t asks for the window that ends at t + 1."""
        return True

    def is_scheduled(self, step: int) -> bool:
        """True at the multiples of the floor; what the token head asks for comes besides."""
        return step > 0 and step % self.floor == 0

    def largest_gap(self) -> int | None:
        """The floor: between two verdicts of the safety token. The token head leaves no token out."""
        return self.floor


NAMES = ("first", "periodic", "annealing", "every", "cascade")


def make_schedule(name: str, *, interval: int = 10, floor: int = 32) -> Schedule:
    """The schedule of that name; `interval` is for `periodic`, `floor` for `annealing` and `cascade`."""
    if interval < 1 or floor < 1:
        raise ConfigError(f"decoding.interval and decoding.floor must be at least 1, got {interval} and {floor}")
    made: dict[str, Schedule] = {
        "first": First(),
        "periodic": Periodic(interval),
        "annealing": Annealing(floor),
        "every": Every(),
        "cascade": Cascade(floor),
    }
    if name not in made:
        raise ConfigError(f"decoding.schedule must be one of {', '.join(NAMES)}, got {name!r}")
    return made[name]


def scheduled_steps(schedule: Schedule, last: int) -> Iterator[int]:
    """The scheduled steps from 1 to `last`."""
    return (step for step in range(1, last + 1) if schedule.is_scheduled(step))


def describe(schedule: Schedule) -> str:
    """One line for logs and reports: the name and the largest gap between two verdicts."""
    gap = schedule.largest_gap()
    bound = "the answer is never looked at" if gap is None else f"at most {gap} token{'s' * (gap > 1)} between verdicts"
    return f"{type(schedule).__name__.lower()}: {bound}"
