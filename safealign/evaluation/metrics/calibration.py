"""Thresholds with an exact bound on false refusals, from order statistics of benign units.

The unit is one benign request with its own answer under the deployed schedule and τ, recorded with
interventions off. The promise holds for the distribution the units were drawn from, and for no other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from safealign.errors import DataError
from safealign.evaluation.metrics.binomial import binomial_cdf, units_needed, upper_limit
from safealign.evaluation.metrics.ranking import Scores, as_array
from safealign.evaluation.metrics.reliability import (
    ReliabilityBin,
    brier,
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
)

__all__ = [
    "Calibration",
    "ReliabilityBin",
    "Threshold",
    "brier",
    "calibrate",
    "candidate_windows",
    "errors_allowed",
    "expected_calibration_error",
    "fit_temperature",
    "max_min_statistic",
    "reliability_bins",
    "threshold",
]


@dataclass(frozen=True)
class Threshold:
    """A threshold on a logit: what reaches `logit` fires.

    `promised_rate` is the exact upper limit, at `confidence`, of the rate at which benign units reach
    `logit`; `carries_promise` says whether it is within `budget`. `errors_allowed` units of the `n` may reach
    it themselves.
    """

    logit: float
    promised_rate: float
    confidence: float
    n: int
    errors_allowed: int
    carries_promise: bool
    note: str
    budget: float
    units_needed: int

    @property
    def probability(self) -> float:
        """sigmoid(logit), for people to read; comparisons use the logit."""
        return 1.0 / (1.0 + math.exp(-max(-700.0, self.logit)))

    def to_dict(self) -> dict[str, Any]:
        """Every field plus `probability`, ready for JSON."""
        return dict(self.__dict__) | {"probability": self.probability}


def errors_allowed(n: int, budget: float, confidence: float) -> int:
    """Most errors among n units that still bound the rate by `budget`; -1 when even none is too many."""
    allowed = -1
    while allowed + 1 < n and binomial_cdf(allowed + 1, n, budget) <= 1.0 - confidence:
        allowed += 1
    return allowed


def threshold(
    statistics: Scores,
    budget: float = 0.01,
    confidence: float = 0.95,
    *,
    errors: int | None = None,
    distribution: str = "",
) -> Threshold:
    """The lowest logit that benign units reach at a rate of at most `budget`, with probability `confidence`.

    With e errors allowed the threshold is the next fp32 number above the (e+1)-th largest statistic. The rate
    at which new units of the same distribution lie above that order statistic is Beta(e+1, n-e) or smaller,
    so its upper limit is the binomial one, exactly and without any assumption on the distribution.

    With too few units for the promise, e = 0 is used and the note says what these units do promise and how
    many would be needed.

    Args:
        statistics: one number per benign unit, shape [n]; -inf for a unit that could not fire (no window).
        budget: the false-alarm rate to promise.
        confidence: the probability with which the promise holds over the draw of the units.
        errors: number of units that may reach the threshold; None = as many as the promise allows.
        distribution: where the units come from, in words, for the note.

    Raises:
        DataError: no units, a nan or +inf among them, more errors than units, or no finite order statistic.
        ValueError: budget or confidence outside (0, 1).
    """
    if not 0.0 < budget < 1.0 or not 0.0 < confidence < 1.0:
        raise ValueError(f"budget and confidence must lie in (0, 1), got {budget} and {confidence}")
    ordered = _checked(statistics)
    n = ordered.size
    e = max(0, errors_allowed(n, budget, confidence)) if errors is None else errors
    if not 0 <= e < n:
        raise DataError(f"calibration: {e} errors allowed of only {n} units; allow fewer or add units")
    if not math.isfinite(ordered[e]):
        raise DataError(
            f"calibration: only {int(np.isfinite(ordered).sum())} of {n} benign units have a window, too few "
            f"for {e} errors; use longer answers"
        )
    promised = upper_limit(e, n, confidence)
    kept = binomial_cdf(e, n, budget) <= 1.0 - confidence
    needed = units_needed(budget, confidence, e)
    logit = float(np.nextafter(np.float32(ordered[e]), np.float32(np.inf)))
    note = _note(promised, confidence, n, e, budget, needed, kept, distribution)
    return Threshold(logit, promised, confidence, n, e, kept, note, budget, needed)


def _checked(statistics: Scores) -> np.ndarray:
    """The statistics in falling order."""
    values = as_array(statistics)
    if values.ndim != 1 or not values.size:
        raise DataError(f"calibration: needs one number per benign unit, got {values.shape}")
    bad = np.isnan(values) | np.isposinf(values)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"calibration: {int(bad.sum())} of {values.size} logits are nan or +inf, first at unit {first}; "
            "look for an unloaded head or an overflow"
        )
    return np.sort(values)[::-1]


def _note(
    promised: float,
    confidence: float,
    n: int,
    e: int,
    budget: float,
    needed: int,
    kept: bool,
    distribution: str,
) -> str:
    of = f" of {distribution}" if distribution else ""
    says = f"at most {promised:.2%} of benign units{of} reach it, at {confidence:.2%} confidence (n = {n}, {e} allowed)"
    if kept:
        return says + "; other sources are measured, not promised"
    return says + f"; the wanted {budget:.2%} would need {needed} units, so it is not promised"


@dataclass(frozen=True)
class Calibration:
    """Several thresholds under one budget: benign units fire any of them at most at `promised_rate`."""

    thresholds: dict[str, Threshold]
    budget: float
    confidence: float

    @property
    def promised_rate(self) -> float:
        """Sum of the parts' promised rates (union bound); holds at `confidence`."""
        return min(1.0, sum(part.promised_rate for part in self.thresholds.values()))

    @property
    def carries_promise(self) -> bool:
        """True when every part keeps its share of the budget."""
        return all(part.carries_promise for part in self.thresholds.values())

    @property
    def note(self) -> str:
        """One sentence on what is promised in all."""
        n = min(part.n for part in self.thresholds.values())
        says = (
            f"at most {self.promised_rate:.2%} of benign units refused, at {self.confidence:.2%} confidence (n = {n})"
        )
        if self.carries_promise:
            return says
        needed = max(part.units_needed for part in self.thresholds.values())
        return says + f"; the wanted {self.budget:.2%} would need {needed} units, so it is not promised"

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; the thresholds by name."""
        return {
            "budget": self.budget,
            "confidence": self.confidence,
            "promised_rate": self.promised_rate,
            "carries_promise": self.carries_promise,
            "note": self.note,
            "thresholds": {name: part.to_dict() for name, part in self.thresholds.items()},
        }


def calibrate(
    statistics: Mapping[str, Scores],
    budget: float = 0.01,
    confidence: float = 0.95,
    *,
    weights: Mapping[str, float] | None = None,
    distribution: str = "",
) -> Calibration:
    """Thresholds for several statistics (`query`, `window`); budget and error probability are split.

    `weights` gives the shares (equal by default). 1 % at 95 % split in two (0.5 % at 97.5 % each) needs 736
    units.

    Raises:
        DataError: as `threshold`, or nothing to calibrate.
    """
    if not statistics:
        raise DataError("calibration: no statistic given; pass the logits of benign units, as {'query': …}")
    shares = {name: 1.0 if weights is None else weights[name] for name in statistics}
    total = sum(shares.values())
    parts = {
        name: threshold(
            values,
            budget * shares[name] / total,
            1.0 - (1.0 - confidence) * shares[name] / total,
            distribution=distribution,
        )
        for name, values in statistics.items()
    }
    return Calibration(parts, budget, confidence)


def candidate_windows(
    steps: Iterable[int], length: int, *, tau: int = 3, r2: int = 10, r3: int = 10, prefix: int = 0
) -> dict[int, list[tuple[int, int]]]:
    """The windows that `max_min_statistic` needs: for each scheduled step S, rule 2's at S, then rule 3's.

    Rule 2's window at S is the newest r2 tokens, rule 3's at t in S+1..min(S+τ-1, length) is
    [max(1 - prefix, S - r2 + 1), min(t, S + r3)].

    Args:
        steps: scheduled steps S, counted from 1; steps beyond `length` are left out, `length` itself is
            always one (the end of an answer is a scheduled step).
        length: number of generated tokens T.
        prefix: number of the caller's prefix tokens m, which windows may reach back into.

    Returns:
        {S: [(first, last), …]}, both ends inclusive and 1-based.
    """
    scheduled = sorted({s for s in steps if 1 <= s <= length} | ({length} if length else set()))
    plan = {}
    for s in scheduled:
        first = max(1 - prefix, s - r2 + 1)
        plan[s] = [(first, min(t, s + r3)) for t in range(s, min(s + tau - 1, length) + 1)]
    return plan


def max_min_statistic(
    window_logits_by_step: Mapping[int, Sequence[float]], tau: int = 3, length: int | None = None
) -> float:
    """Window statistic of a unit: max over scheduled S of the smallest logit of S's and rule 3's windows.

    An intervention at S needs every one of these to reach θ_window, so it implies that the statistic does.

    Args:
        window_logits_by_step: {S: [logit at S, rule 3's at S+1, …, at min(S+τ-1, T)]}; more than τ are
        ignored.
        tau: number of hits in a row that make an intervention.
        length: T; when given, each list must be complete.

    Returns:
        The statistic; -inf for a unit without any window.

    Raises:
        ValueError: an empty list, or one shorter than τ and T demand.
    """
    best = -math.inf
    for s, logits in window_logits_by_step.items():
        wanted = 1 if length is None else min(tau, length - s + 1)
        if len(logits) < wanted:
            raise ValueError(f"step {s} has {len(logits)} window logits of {wanted} (tau = {tau}, T = {length})")
        best = max(best, min(float(logit) for logit in logits[:tau]))
    return best
