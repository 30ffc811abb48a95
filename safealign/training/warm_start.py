"""Logistic regressions on states: the head's start on the frozen model's, the windows' last fit on the trained one's.

Zou-style linear probes of frozen states already hold most of the verdict; joint training starts from there rather
than from zero. It moves the states, and sees few answers beside the start's: the windows' own read-out is therefore
fitted once more when the model stands still.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from safealign.judges.linear import ITERATIONS, PENALTY_PER_TEXT, LogisticProbe
from safealign.judges.prototype import LatentPrototypes
from safealign.layout import Layout, RowKind
from safealign.modeling.attach import SafetyParts
from safealign.modeling.feature_cache import FeatureCache
from safealign.modeling.features import layout_features
from safealign.training.examples import Example

LOGISTIC, PROTOTYPE = "logistic", "prototype"  # safety.head.kind


@dataclass
class WarmStart:
    """What the head was started on: frozen features `[N, width]`, labels, row kinds and text numbers, each `[N]`."""

    features: torch.Tensor
    labels: torch.Tensor
    kinds: torch.Tensor
    texts: torch.Tensor

    def of(self, chosen: torch.Tensor) -> WarmStart:
        """The chosen rows, `chosen` being bool `[N]`."""
        return WarmStart(self.features[chosen], self.labels[chosen], self.kinds[chosen], self.texts[chosen])


def warm_start(
    parts: SafetyParts,
    requests: Sequence[Example],
    answered: Sequence[Example],
    *,
    penalty: float = PENALTY_PER_TEXT,
    batch_size: int = 32,
    autocast: torch.dtype | None = None,
    fit: bool = True,
    keep: Collection[int] = (),
    progress: Callable[[int], None] | None = None,
    cache: FeatureCache | None = None,
    kind: str = LOGISTIC,
) -> WarmStart:
    """Standardises the head on frozen features and, with `fit`, loads the solution of a regression or of prototypes.

    The verdicts on `requests` are read from the prompts alone, windows from `answered` with the gate closed (a fresh
    slot would only disturb the frozen model). Both labels and all kinds of row that a read-out judges weigh the same
    in all. `penalty`: L2 per text, since the windows of one answer are no independent evidence. `keep`: read-outs that
    stay as they are, standardisation included. `kind`: `logistic`, or `prototype` (`judges.prototype`, where `penalty`
    and the rows' balance have no part).
    """
    prompts = [(e.input_ids[: _prompt_end(e)], _requests_only(e.layout)) for e in requests]
    start = _read(parts, [*prompts, *_answers(answered)], batch_size, autocast, progress, cache)
    head: Any = parts.head  # the head, or PEFT's wrapper of it
    readouts = parts.readouts(start.kinds)
    for readout in sorted({*readouts.unique().tolist()} - {*keep}):
        rows = start.of(readouts == readout)
        head.standardise_on(rows.features, readout)
        # Without harmful answers the windows' read-out starts from zero; a request's verdict needs both labels.
        if fit and (readout == 0 or len(rows.labels.unique()) == 2):
            _fit_readout(head, rows, readout, penalty, kind)
    return start


def refit_windows(
    parts: SafetyParts,
    answered: Sequence[Example],
    *,
    penalty: float = PENALTY_PER_TEXT,
    batch_size: int = 32,
    autocast: torch.dtype | None = None,
    progress: Callable[[int], None] | None = None,
) -> bool:
    """Fits the windows' own read-out on the trained model's states, under the standardisation that it has.

    Returns False, and changes nothing, where windows have no read-out of their own or `answered` lacks a label.
    """
    if not parts.settings.separate_windows:
        return False
    rows = _read(parts, _answers(answered), batch_size, autocast, progress) if answered else None
    if rows is None or len(rows.labels.unique()) < 2:
        return False
    _fit_readout(parts.head, rows, int(parts.readouts(rows.kinds)[0]), penalty)
    return True


def _read(
    parts: SafetyParts,
    texts: Sequence[tuple[Sequence[int], Layout]],
    batch_size: int,
    autocast: torch.dtype | None,
    progress: Callable[[int], None] | None,
    cache: FeatureCache | None = None,
) -> WarmStart:
    chosen = [(ids, layout) for ids, layout in texts if layout.safety]
    device = str(parts.head.mean.device.type)
    with torch.autocast(device, dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        found = layout_features(
            parts, [ids for ids, _ in chosen], [layout for _, layout in chosen], batch_size, progress, cache
        )
    return WarmStart(
        torch.cat(found),
        torch.tensor([row.label for _, layout in chosen for row in layout.safety]),
        torch.tensor([int(row.kind) for _, layout in chosen for row in layout.safety]),
        torch.tensor([text for text, (_, layout) in enumerate(chosen) for _ in layout.safety]),
    )


def _fit_readout(head: Any, rows: WarmStart, readout: int, penalty: float, kind: str = LOGISTIC) -> None:
    """Loads the solution on these rows; inputs that the read-out does not read weigh nothing."""
    reads = head.reads[readout].cpu()
    mean, scale = head.mean[readout].cpu()[reads], head.scale[readout].cpu()[reads]
    features = rows.features[:, reads]
    if kind == PROTOTYPE:
        found = LatentPrototypes().fit(features, rows.labels)
        # Fitted on the states as they are; the head standardises first, and then says the same.
        weight, bias = found.weight * scale.double(), found.bias + found.weight @ mean.double()
    else:
        weights, l2 = _balance(rows.labels, rows.kinds), penalty * len(rows.texts.unique())
        probe = LogisticProbe(mean, scale).fit(features, rows.labels, weights, l2=l2, max_iter=ITERATIONS)
        weight, bias = probe.weight, probe.bias
    whole = torch.zeros(len(reads))
    whole[reads] = weight.float()
    head.set_linear(whole, float(bias), readout)


def _answers(answered: Sequence[Example]) -> list[tuple[tuple[int, ...], Layout]]:
    return [(e.input_ids, _closed(e.layout)) for e in answered]


def _prompt_end(example: Example) -> int:
    """Rows that the request's verdict can depend on: up to the last content row of the query."""
    return example.layout.last_query + 1


def _requests_only(layout: Layout) -> Layout:
    rows = tuple(row for row in layout.safety if row.kind is RowKind.REQUEST and row.label is not None)
    end = layout.last_query + 1
    return Layout(end, rows, (-1,) * end, layout.last_query)


def _closed(layout: Layout) -> Layout:
    rows = tuple(row for row in layout.safety if row.kind is RowKind.WINDOW and row.label is not None)
    return replace(layout, safety=rows, sees=(-1,) * layout.n_text)


def _balance(labels: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
    """Row weights that give each (kind, label) group the same total; they sum to the number of rows."""
    groups = [(kinds == kind) & (labels == label) for kind in kinds.unique() for label in labels.unique()]
    groups = [group for group in groups if group.any()]
    weights = torch.zeros(len(labels), dtype=torch.float64)
    for group in groups:
        weights[group] = len(labels) / len(groups) / int(group.sum())
    return weights
