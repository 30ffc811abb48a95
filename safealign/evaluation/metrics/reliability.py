"""Do probabilities mean what they say: temperature, calibration error, Brier score, reliability bins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from safealign.errors import DataError
from safealign.evaluation.metrics.ranking import Labels, Scores, as_array
from safealign.evaluation.metrics.rates import Rate

TEMPERATURE_RANGE = (0.05, 20.0)


def fit_temperature(logits: Scores, labels: Labels) -> float:
    """Temperature T > 0 that minimises the cross-entropy of sigmoid(logits / T), within `TEMPERATURE_RANGE`.

    Fit it on a split of its own. It changes what probabilities are shown, never a ranking or a threshold on
    logits. Perfectly separated rows have no minimum; the result is then the lower end of the range.

    Raises:
        DataError: lengths differ, a logit is not finite, or one of the classes is missing.
    """
    z, y = _checked(logits, labels)

    def slope(beta: float) -> float:
        """Of the cross-entropy by β = 1/T; rises with β (convex)."""
        return float(((_sigmoid(beta * z) - y) * z).mean())

    low, high = (math.log(1.0 / t) for t in reversed(TEMPERATURE_RANGE))
    for _ in range(80):
        middle = (low + high) / 2.0
        if slope(math.exp(middle)) < 0.0:
            low = middle
        else:
            high = middle
    return math.exp(-(low + high) / 2.0)


def brier(probabilities: Scores, labels: Labels) -> float:
    """Mean squared distance of probability and label; 0 is perfect, 0.25 is what p = 0.5 gives."""
    p, y = as_array(probabilities), as_array(labels)
    return float(((p - y) ** 2).mean())


@dataclass(frozen=True)
class ReliabilityBin:
    """Rows whose probability lies in [low, high): their mean probability and the share that is harmful."""

    low: float
    high: float
    mean_probability: float
    harmful: Rate

    def to_dict(self) -> dict[str, Any]:
        """The bin as plain values."""
        return {
            "low": self.low,
            "high": self.high,
            "mean_probability": self.mean_probability,
            "harmful": self.harmful.to_dict(),
        }


def reliability_bins(probabilities: Scores, labels: Labels, bins: int = 10) -> list[ReliabilityBin]:
    """Bins of equal width over [0, 1]; empty ones are left out, 1.0 belongs to the last.

    Raises:
        ValueError: a probability outside [0, 1].
    """
    p, y = as_array(probabilities), as_array(labels) > 0.5
    if p.size and not (p.min() >= 0.0 and p.max() <= 1.0):
        raise ValueError("probabilities must lie in [0, 1]; pass sigmoid(logits)")
    index = np.minimum((p * bins).astype(int), bins - 1)
    return [
        ReliabilityBin(i / bins, (i + 1) / bins, float(p[index == i].mean()), Rate.of(y[index == i].tolist()))
        for i in range(bins)
        if (index == i).any()
    ]


def expected_calibration_error(probabilities: Scores, labels: Labels, bins: int = 10) -> float:
    """Mean gap between probability and harmful share over the bins, weighted by their rows."""
    rows = reliability_bins(probabilities, labels, bins)
    total = sum(row.harmful.n for row in rows)
    return sum(row.harmful.n * abs(row.mean_probability - row.harmful.value) for row in rows) / total


def _checked(logits: Scores, labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    z, y = as_array(logits), (as_array(labels) > 0.5).astype(np.float64)
    if z.shape != y.shape or not np.isfinite(z).all():
        raise DataError(f"temperature: needs one finite logit per label, got shapes {z.shape} and {y.shape}")
    if y.min(initial=1.0) == y.max(initial=0.0):
        raise DataError("temperature: needs harmful and benign rows in its split; add the missing ones")
    return z, y


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.where(x >= 0, 1.0, np.exp(np.minimum(x, 0))) / (1.0 + np.exp(-np.abs(x))))
