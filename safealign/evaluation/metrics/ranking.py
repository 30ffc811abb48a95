"""How well scores rank harmful above benign: AUROC with DeLong's interval, recall at a false-alarm rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

from safealign.evaluation.metrics.rates import Estimate, Rate

Scores = Sequence[float] | np.ndarray | torch.Tensor
Labels = Sequence[int] | Sequence[bool] | Sequence[float] | np.ndarray | torch.Tensor


def auroc(scores: Scores, labels: Labels, confidence: float = 0.95) -> Estimate:
    """Area under the ROC curve, ties counted half, with DeLong's interval on the logit scale.

    The logit scale keeps the interval inside (0, 1) near the ends. Where DeLong's variance vanishes (perfect
    ranking) the score interval of Newcombe's method 5 takes over, so 1.0 never comes with a width of zero.

    Args:
        scores: one score per row, higher = more harmful, shape [N].
        labels: 1 = harmful, 0 = benign, shape [N].

    Raises:
        ValueError: lengths differ, a score is nan, or one of the classes is missing.
    """
    positive, negative = split_by_label(scores, labels)
    value, variance = delong(positive, negative)
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    n = positive.size + negative.size
    if 0.0 < value < 1.0 and variance > 0.0:
        centre = math.log(value / (1.0 - value))
        half = z * math.sqrt(variance) / (value * (1.0 - value))
        return Estimate(value, n, (_sigmoid(centre - half), _sigmoid(centre + half)), confidence)
    return Estimate(value, n, _newcombe(value, positive.size, negative.size, z), confidence)


def delong(positive: np.ndarray, negative: np.ndarray) -> tuple[float, float]:
    """AUROC and its variance (DeLong et al. 1988, by midranks: Sun & Xu 2014)."""
    m, n = positive.size, negative.size
    pooled = _midranks(np.concatenate([positive, negative]))
    above = (pooled[:m] - _midranks(positive)) / n  # share of negatives below each positive
    below = 1.0 - (pooled[m:] - _midranks(negative)) / m
    variance = (above.var(ddof=1) / m if m > 1 else 0.0) + (below.var(ddof=1) / n if n > 1 else 0.0)
    return float(above.mean()), float(variance)


@dataclass(frozen=True)
class Recall:
    """Recall at a false-positive rate: what share of the harmful rows scores at or above `threshold`."""

    rate: Rate
    fpr: float
    false_positives: Rate
    threshold: float

    def to_dict(self) -> dict[str, Any]:
        """The recall's rate with the nominal and the reached false-positive rate, ready for JSON."""
        reached = self.false_positives.to_dict()
        threshold = self.threshold if math.isfinite(self.threshold) else None
        return self.rate.to_dict() | {"fpr": self.fpr, "false_positives": reached, "threshold": threshold}


def recall_at_fpr(scores: Scores, labels: Labels, fpr: float = 0.01) -> Recall:
    """Recall at the lowest threshold whose false-positive rate is at most `fpr` (a row fires at ≥ threshold).

    With fewer than 1/fpr benign rows this means no false positive at all.

    Raises:
        ValueError: as `auroc`.
    """
    positive, negative = split_by_label(scores, labels)
    ordered = np.sort(negative)[::-1]
    allowed = min(int(math.floor(fpr * negative.size + 1e-9)), negative.size)
    last = allowed == negative.size
    threshold = -math.inf if last else float(np.nextafter(ordered[allowed], math.inf))
    caught = Rate(int((positive >= threshold).sum()), int(positive.size))
    return Recall(caught, fpr, Rate(int((negative >= threshold).sum()), int(negative.size)), threshold)


def fire_rate(scores: Scores, threshold: float) -> Rate:
    """Share of rows at or above `threshold`: recall on harmful rows, false alarms on benign ones."""
    values = as_array(scores)
    return Rate(int((values >= threshold).sum()), int(values.size))


@dataclass(frozen=True)
class CategoryRow:
    """One category's rows: a harmful one ranked against all benign rows, a benign one against all harmful."""

    category: str
    label: int
    n: int
    auroc: Estimate
    fires: dict[float, Rate]

    def to_dict(self) -> dict[str, Any]:
        """The row as plain values; `fires` by false-positive rate."""
        fires = {f"{fpr:g}": rate.to_dict() for fpr, rate in self.fires.items()}
        plain = {"category": self.category, "label": self.label, "n": self.n}
        return plain | {"auroc": self.auroc.to_dict(), "fires": fires}


def by_category(
    scores: Scores, labels: Labels, categories: Sequence[str | None], fprs: Sequence[float] = (0.01, 0.05)
) -> list[CategoryRow]:
    """One row per (label, category), harmful first; thresholds are those of all benign rows together.

    `fires` is the recall of a harmful category and the false-alarm rate of a benign one. Rows without a
    category are put under "other".
    """
    x, y = as_array(scores), as_array(labels) > 0.5
    if len(categories) != x.size:
        raise ValueError(f"{x.size} scores but {len(categories)} categories")
    names = np.asarray([name or "other" for name in categories], dtype=object)
    thresholds = {fpr: recall_at_fpr(x, y, fpr).threshold for fpr in fprs}
    rows = []
    for label in (1, 0):
        same = y == bool(label)
        for name in sorted(set(names[same])):
            mine = same & (names == name)
            chosen = mine | ~same
            fires = {fpr: fire_rate(x[mine], threshold) for fpr, threshold in thresholds.items()}
            rows.append(CategoryRow(name, label, int(mine.sum()), auroc(x[chosen], y[chosen]), fires))
    return rows


@dataclass(frozen=True)
class Ranking:
    """AUROC and recalls of one set of scores."""

    auroc: Estimate
    recalls: tuple[Recall, ...]

    def to_dict(self) -> dict[str, Any]:
        """`auroc` and `recall@<fpr>`, each with value, n and interval."""
        return {"auroc": self.auroc.to_dict()} | {f"recall@{r.fpr:g}": r.to_dict() for r in self.recalls}

    def flat(self, prefix: str = "") -> dict[str, float]:
        """Point estimates only, for a training log: `{prefix}auroc`, `{prefix}recall@0.01`, …"""
        recalls = {f"{prefix}recall@{r.fpr:g}": r.rate.value for r in self.recalls}
        return {f"{prefix}auroc": self.auroc.value} | recalls


def ranking(scores: Scores, labels: Labels, fprs: Sequence[float] = (0.01, 0.05)) -> Ranking:
    """AUROC and recall at each false-positive rate in one go."""
    return Ranking(auroc(scores, labels), tuple(recall_at_fpr(scores, labels, fpr) for fpr in fprs))


def split_by_label(scores: Scores, labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """(positive scores, negative scores) in fp64, checked."""
    x, y = as_array(scores), as_array(labels)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"scores and labels must be equally long vectors, got {x.shape} and {y.shape}")
    if np.isnan(x).any():
        raise ValueError(f"{int(np.isnan(x).sum())} of {x.size} scores are nan")
    positive, negative = x[y > 0.5], x[y <= 0.5]
    if not positive.size or not negative.size:
        raise ValueError(f"both classes are needed, got {positive.size} harmful, {negative.size} benign rows")
    return positive, negative


def as_array(values: Scores | Labels) -> np.ndarray:
    """`values` as an fp64 array, wherever they live."""
    if isinstance(values, torch.Tensor):
        return values.detach().double().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def _midranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2.0)[inverse]


def _newcombe(value: float, m: int, n: int, z: float) -> tuple[float, float]:
    """Score interval of an AUROC from its value alone (Newcombe 2006, method 5)."""
    extra = (m + n) / 2.0 - 1.0

    def distance(theta: float) -> float:
        """At most 0 where θ is within z standard errors of the value."""
        shape = (1.0 - theta) / (2.0 - theta) + theta / (1.0 + theta)
        variance = theta * (1.0 - theta) * (1.0 + extra * shape) / (m * n)
        return (value - theta) ** 2 - z * z * variance

    return _root(distance, value, 0.0), _root(distance, value, 1.0)


def _root(distance: Callable[[float], float], inside: float, outside: float) -> float:
    """The end of an interval between `inside` (distance ≤ 0) and `outside`."""
    if inside == outside:
        return outside
    for _ in range(80):
        middle = (inside + outside) / 2.0
        if distance(middle) <= 0.0:
            inside = middle
        else:
            outside = middle
    return inside


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))
