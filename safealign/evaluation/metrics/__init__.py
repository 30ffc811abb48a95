"""Metrics with their intervals: rates, ranking, calibration, reliability."""

from __future__ import annotations

from safealign.evaluation.metrics.ranking import auroc, by_category, ranking, recall_at_fpr
from safealign.evaluation.metrics.rates import Estimate, Rate, difference, mean

__all__ = ["Estimate", "Rate", "auroc", "by_category", "difference", "mean", "ranking", "recall_at_fpr"]
