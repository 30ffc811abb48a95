"""Fixes the head's standardisation and starts it from a logistic regression on the frozen model's states.

Zou-style linear probes of frozen states already hold most of the verdict; joint training starts from there rather
than from zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from safealign.judges.linear import PENALTY_PER_TEXT, LogisticProbe
from safealign.layout import Layout, RowKind
from safealign.modeling.attach import SafetyParts
from safealign.modeling.features import layout_features
from safealign.training.examples import Example


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
    progress: Callable[[int], None] | None = None,
) -> WarmStart:
    """Standardises the head on frozen features and, with `fit`, loads the regression's solution.

    The verdicts on `requests` are read from the prompts alone, windows from `answered` with the gate closed (a fresh
    slot would only disturb the frozen model). Both labels and all kinds of row that a read-out judges weigh the same
    in all. `penalty`: L2 per text, since the windows of one answer are no independent evidence.
    """
    prompts = [(e.input_ids[: _prompt_end(e)], _requests_only(e.layout)) for e in requests]
    whole = [(e.input_ids, _closed(e.layout)) for e in answered]
    chosen = [(ids, layout) for ids, layout in [*prompts, *whole] if layout.safety]
    device = str(parts.head.mean.device.type)
    with torch.autocast(device, dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        found = layout_features(
            parts, [ids for ids, _ in chosen], [layout for _, layout in chosen], batch_size, progress
        )
    start = WarmStart(
        torch.cat(found),
        torch.tensor([row.label for _, layout in chosen for row in layout.safety]),
        torch.tensor([int(row.kind) for _, layout in chosen for row in layout.safety]),
        torch.tensor([text for text, (_, layout) in enumerate(chosen) for _ in layout.safety]),
    )
    readouts = parts.readouts(start.kinds)
    for readout in readouts.unique().tolist():
        _start_readout(parts.head, start.of(readouts == readout), readout, penalty if fit else None)
    return start


def _start_readout(head: Any, rows: WarmStart, readout: int, penalty: float | None) -> None:
    """Standardises one read-out on its rows and, with a `penalty`, loads the regression's solution."""
    head.standardise_on(rows.features, readout)
    # Without harmful answers the windows' read-out starts from zero; a request's verdict cannot do without both labels.
    if penalty is not None and (readout == 0 or len(rows.labels.unique()) == 2):
        probe = LogisticProbe(head.mean[readout], head.scale[readout])
        probe.fit(rows.features, rows.labels, _balance(rows.labels, rows.kinds), l2=penalty * len(rows.texts.unique()))
        head.set_linear(probe.weight.float(), float(probe.bias), readout)


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
