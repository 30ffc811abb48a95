"""How well the safety rows judge: loss, accuracy, calibration, AUROC and recall, by kind of row and category."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from safealign.evaluation.metrics.ranking import by_category, ranking
from safealign.evaluation.metrics.reliability import expected_calibration_error
from safealign.layout import RowKind

# The threshold that a kind of row is compared with at inference.
THRESHOLD_OF = {RowKind.REQUEST: "query", RowKind.WINDOW: "window"}


def verdict_metrics(verdicts: Mapping[str, torch.Tensor], categories: Mapping[int, str]) -> dict[str, float]:
    """Flat metrics of gathered verdicts (`logits`, `labels`, `kinds`, `examples`, each `[N]`).

    For each kind of row (request, window, refresh): `<kind>/auroc`, `<kind>/recall@0.01`, `<kind>/recall@0.05`,
    `<kind>/loss` (cross-entropy, nats), `<kind>/accuracy@0.5` and `<kind>/calibration_error` (at temperature 1);
    for requests also `request/auroc/<category>`: that category's malicious requests against all benign ones.
    Kinds without both labels are left out. `categories`: example index to the request's kind of harm.
    """
    found: dict[str, float] = {}
    for kind, chosen in _judged(verdicts):
        logits, labels = verdicts["logits"][chosen], verdicts["labels"][chosen] > 0.5
        prefix = f"{kind.name.lower()}/"
        found |= ranking(logits, labels).flat(prefix) | _fit(logits, labels, prefix)
        if kind is RowKind.REQUEST:
            names = [categories.get(int(index)) for index in verdicts["examples"][chosen]]
            rows = (row for row in by_category(logits, labels, names) if row.label == 1)
            found |= {f"{prefix}auroc/{row.category}": row.auroc.value for row in rows}
    return found


def calibrated_metrics(
    verdicts: Mapping[str, torch.Tensor], thresholds: Mapping[str, float | None], temperature: float
) -> dict[str, float]:
    """As deployed: `calibrated/<kind>/accuracy` at the kind's threshold, `calibrated/<kind>/calibration_error`.

    `thresholds`: logits by name (query, window); a kind without one has no accuracy. Refresh rows are never acted on.
    """
    found: dict[str, float] = {}
    for kind, chosen in _judged(verdicts):
        name = THRESHOLD_OF.get(kind)
        if name is None:
            continue
        logits, labels = verdicts["logits"][chosen], verdicts["labels"][chosen] > 0.5
        prefix, threshold = f"calibrated/{kind.name.lower()}/", thresholds.get(name)
        if threshold is not None:
            found[f"{prefix}accuracy"] = float(((logits >= threshold) == labels).float().mean())
        found[f"{prefix}calibration_error"] = expected_calibration_error(torch.sigmoid(logits / temperature), labels)
    return found


def _judged(verdicts: Mapping[str, torch.Tensor]) -> Iterator[tuple[RowKind, torch.Tensor]]:
    """Each kind of row that carries both labels, with the mask of its rows."""
    for kind in RowKind:
        chosen = verdicts["kinds"] == int(kind)
        labels = verdicts["labels"][chosen] > 0.5
        if labels.any() and not labels.all():
            yield kind, chosen


def _fit(logits: torch.Tensor, labels: torch.Tensor, prefix: str) -> dict[str, float]:
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.float())
    return {
        f"{prefix}loss": float(loss),
        f"{prefix}accuracy@0.5": float(((logits >= 0) == labels).float().mean()),
        f"{prefix}calibration_error": expected_calibration_error(torch.sigmoid(logits), labels),
    }
