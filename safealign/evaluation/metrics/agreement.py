"""Rates with intervals from the counts of a judge's agreement with people."""

from __future__ import annotations

from safealign.evaluation.metrics.rates import Rate
from safealign.judges.refusal import Agreement


def agreement_rates(counts: Agreement) -> dict[str, Rate]:
    """`agreement`, `false_positive` (answers taken for refusals), `false_negative`, `agreement_on_topic`."""
    return {
        "agreement": Rate(counts.agreed, counts.n),
        "false_positive": Rate(counts.false_positives, counts.answers),
        "false_negative": Rate(counts.false_negatives, counts.refusals),
        "agreement_on_topic": Rate(counts.on_topic_agreed, counts.on_topic),
    }
