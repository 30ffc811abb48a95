"""Contrast pairs that a linear head never saw: five folds by pair, and each source left out whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from safealign.data.readers import pair_of
from safealign.data.records import MALICIOUS, Record
from safealign.data.sources import load_records
from safealign.evaluation.metrics.ranking import auroc
from safealign.evaluation.metrics.rates import Estimate
from safealign.evaluation.sets import SETS
from safealign.judges.linear import grouped_folds

Score = Callable[[Sequence[Record]], torch.Tensor]
Fit = Callable[[Sequence[Record]], Score]


def all_pairs(offline: bool = False) -> list[Record]:
    """Every contrast pair of every source, those of training included."""
    return [record for source, _ in SETS["pairs"].sources for record in load_records(source, offline=offline)]


def fold_auroc(fit: Fit, requests: Sequence[Record], pairs: Sequence[Record], folds: int = 5) -> Estimate:
    """AUROC over all pairs, each scored by a head that was fitted without its fold (logits of all folds pooled)."""
    names = [_name(record) for record in pairs]
    scores = torch.zeros(len(pairs), dtype=torch.float64)
    for known, unknown in grouped_folds(names, folds):
        test = [pairs[i] for i in unknown.tolist()]
        scores[unknown] = _fit_without(fit, requests, [pairs[i] for i in known.tolist()], test)(test).double()
    return auroc(scores, _labels(pairs))


def left_out_auroc(fit: Fit, requests: Sequence[Record], pairs: Sequence[Record]) -> dict[str, Estimate]:
    """By source of pairs: AUROC of a head that was fitted without any request of that source."""
    found = {}
    for source in sorted({str(record.source) for record in pairs}):
        test = [record for record in pairs if record.source == source]
        others = [record for record in pairs if record.source != source]
        kept = [record for record in requests if record.source != source]
        found[source] = auroc(_fit_without(fit, kept, others, test)(test), _labels(test))
    return found


def _fit_without(fit: Fit, requests: Sequence[Record], known: Sequence[Record], test: Sequence[Record]) -> Score:
    """A head fitted on the requests and known pairs, without any version of the test pairs."""
    held = {_name(record) for record in test}
    kept = [record for record in requests if _name(record) not in held]
    seen = {record.id for record in kept}
    return fit([*kept, *(record for record in known if record.id not in seen)])


def _name(record: Record) -> str:
    """What a pair and everything derived from it share."""
    pair = pair_of(record)
    return (pair or record.id or record.request).split("#")[0]


def _labels(pairs: Sequence[Record]) -> torch.Tensor:
    return torch.tensor([record.label == MALICIOUS for record in pairs])
