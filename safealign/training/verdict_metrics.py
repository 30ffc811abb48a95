"""How well the safety rows judge: AUROC and recall at fixed false-positive rates, by kind of row and category."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from safealign.evaluation.metrics.ranking import by_category, ranking
from safealign.layout import RowKind


def verdict_metrics(verdicts: Mapping[str, torch.Tensor], categories: Mapping[int, str]) -> dict[str, float]:
    """Flat metrics of gathered verdicts (`logits`, `labels`, `kinds`, `examples`, each `[N]`).

    For each kind of row (request, window, refresh): `<kind>/auroc`, `<kind>/recall@0.01`, `<kind>/recall@0.05`;
    for requests also `request/auroc/<category>`: that category's malicious requests against all benign ones.
    Kinds without both labels are left out. `categories`: example index to the request's kind of harm.
    """
    found: dict[str, float] = {}
    for kind in RowKind:
        chosen = verdicts["kinds"] == int(kind)
        logits, labels = verdicts["logits"][chosen], verdicts["labels"][chosen] > 0.5
        if not labels.any() or labels.all():
            continue
        prefix = f"{kind.name.lower()}/"
        found |= ranking(logits, labels).flat(prefix)
        if kind is RowKind.REQUEST:
            names = [categories.get(int(index)) for index in verdicts["examples"][chosen]]
            rows = (row for row in by_category(logits, labels, names) if row.label == 1)
            found |= {f"{prefix}auroc/{row.category}": row.auroc.value for row in rows}
    return found
