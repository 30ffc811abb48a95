"""Exact binomial mathematics: distribution function, confidence limits, sample sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

_TINY = 1e-300


def regularised_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function I_x(a, b) for a, b > 0, by Lentz's continued fraction."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    if x < (a + 1.0) / (a + b + 2.0):
        return math.exp(log_front) * _beta_fraction(a, b, x) / a
    return 1.0 - math.exp(log_front) * _beta_fraction(b, a, 1.0 - x) / b


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Continued fraction of the incomplete beta function; converges fast for x < (a+1)/(a+b+2)."""
    c, d = 1.0, 1.0 / _away_from_zero(1.0 - (a + b) * x / (a + 1.0))
    value = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        for term in (even, odd):
            d = 1.0 / _away_from_zero(1.0 + term * d)
            c = _away_from_zero(1.0 + term / c)
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return value


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P(X ≤ k) for X ~ Binomial(n, p), equal to I_{1-p}(n - k, k + 1)."""
    if k < 0:
        return 0.0
    if k >= n:
        return 1.0
    return regularised_beta(n - k, k + 1.0, 1.0 - p)


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a proportion with k of n successes; (0, 1) when n = 0."""
    tail = (1.0 - confidence) / 2.0
    return lower_limit(k, n, 1.0 - tail), upper_limit(k, n, 1.0 - tail)


def upper_limit(k: int, n: int, confidence: float = 0.95) -> float:
    """One-sided exact upper limit: the p at which P(X ≤ k) falls to 1 - confidence."""
    if k >= n:
        return 1.0
    return _bisect(lambda p: binomial_cdf(k, n, p) > 1.0 - confidence)


def lower_limit(k: int, n: int, confidence: float = 0.95) -> float:
    """One-sided exact lower limit: the p at which P(X ≥ k) rises to 1 - confidence."""
    return 0.0 if k <= 0 else 1.0 - upper_limit(n - k, n, confidence)


def wilson(k: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion with k of n successes; (0, 1) when n = 0."""
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    share, z2 = k / n, z * z / n
    centre = (share + z2 / 2.0) / (1.0 + z2)
    half = math.sqrt(z2 * (share * (1.0 - share) + z2 / 4.0)) / (1.0 + z2)
    return (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)


def units_needed(rate: float, confidence: float, errors: int = 0) -> int:
    """Smallest n whose exact upper limit with `errors` errors is at most `rate` (299 for 1 %, 95 %, none)."""
    high = errors + 1
    while binomial_cdf(errors, high, rate) > 1.0 - confidence:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if binomial_cdf(errors, middle, rate) > 1.0 - confidence:
            low = middle
        else:
            high = middle
    return high


def _bisect(below: Callable[[float], bool], low: float = 0.0, high: float = 1.0) -> float:
    """The point of [low, high] at which `below` turns from true to false."""
    for _ in range(100):
        middle = (low + high) / 2.0
        if below(middle):
            low = middle
        else:
            high = middle
    return high
