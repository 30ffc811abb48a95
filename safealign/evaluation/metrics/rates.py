"""Rates and means with their counts and confidence intervals: nothing is reported without them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from safealign.evaluation.metrics.binomial import clopper_pearson, wilson


@dataclass(frozen=True)
class Rate:
    """`successes` of `n`, with Wilson's and the exact interval at `confidence`.

    Raises:
        ValueError: successes outside [0, n].
    """

    successes: int
    n: int
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not 0 <= self.successes <= self.n:
            raise ValueError(f"a rate needs 0 <= successes <= n, got {self.successes} of {self.n}")

    @classmethod
    def of(cls, flags: Iterable[bool], confidence: float = 0.95) -> Rate:
        """The rate of true values among `flags`."""
        values = [bool(flag) for flag in flags]
        return cls(sum(values), len(values), confidence)

    @property
    def k(self) -> int:
        """Number of successes."""
        return self.successes

    @property
    def value(self) -> float:
        """Share of successes; nan when nothing was counted."""
        return self.successes / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval."""
        return wilson(self.successes, self.n, self.confidence)

    @property
    def exact_interval(self) -> tuple[float, float]:
        """Clopper–Pearson's interval: never below its nominal coverage."""
        return clopper_pearson(self.successes, self.n, self.confidence)

    def to_dict(self) -> dict[str, Any]:
        """`value` (null when n = 0), `n`, `k`, `interval`, `exact_interval`, `confidence`, ready for JSON."""
        return {
            "value": self.value if self.n else None,
            "n": self.n,
            "k": self.successes,
            "interval": list(self.interval),
            "exact_interval": list(self.exact_interval),
            "confidence": self.confidence,
        }

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} ({self.successes}/{self.n}, {low:.1%}–{high:.1%})" if self.n else "– (0/0)"


@dataclass(frozen=True)
class Estimate:
    """A figure that is no count (a mean, a difference, an area), the rows behind it and its interval."""

    value: float
    n: int
    interval: tuple[float, float]
    confidence: float = 0.95

    def to_dict(self) -> dict[str, Any]:
        """`value`, `n`, `interval`, `confidence`, ready for JSON; what is not finite becomes null."""
        low, high = (_finite(end) for end in self.interval)
        plain = {"value": _finite(self.value), "n": self.n}
        return plain | {"interval": [low, high], "confidence": self.confidence}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f} ({low:.3f}–{high:.3f}, n={self.n})"


def mean(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Mean of `values` with the normal interval; the interval is unbounded with fewer than two values."""
    x = np.asarray(values, dtype=np.float64)
    if x.size < 2:
        only = float(x[0]) if x.size else math.nan
        return Estimate(only, int(x.size), (-math.inf, math.inf), confidence)
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    half = z * float(x.std(ddof=1)) / math.sqrt(x.size)
    centre = float(x.mean())
    return Estimate(centre, int(x.size), (centre - half, centre + half), confidence)


def difference(
    first: Sequence[float | bool],
    second: Sequence[float | bool],
    *,
    resamples: int = 4000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """mean(second) − mean(first) over the *same* rows, with a percentile bootstrap that resamples rows.

    Raises:
        ValueError: the two sequences differ in length or are empty.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"paired rows needed: {len(first)} and {len(second)} values were given")
    gaps = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, gaps.size, size=(resamples, gaps.size))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(gaps[draws].mean(axis=1), [tail, 1.0 - tail])
    return Estimate(float(gaps.mean()), int(gaps.size), (float(low), float(high)), confidence)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
