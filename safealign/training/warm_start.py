"""Fixes the head's standardisation and starts it from a logistic regression on the frozen model's states.

Zou-style linear probes of frozen states already hold most of the verdict; joint training starts from there rather
than from zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from safealign.judges.linear import LogisticProbe
from safealign.layout import Layout, RowKind
from safealign.modeling.attach import SafetyParts
from safealign.modeling.features import layout_features
from safealign.training.examples import Example


@dataclass
class WarmStart:
    """Frozen features `[N, width]`, labels `[N]` and row kinds `[N]` that the head was started on."""

    features: torch.Tensor
    labels: torch.Tensor
    kinds: torch.Tensor


def warm_start(
    parts: SafetyParts,
    requests: Sequence[Example],
    answered: Sequence[Example],
    *,
    window_examples: int = 300,
    l2: float = 100.0,
    batch_size: int = 32,
    autocast: torch.dtype | None = None,
    fit: bool = True,
    progress: Callable[[int], None] | None = None,
) -> WarmStart:
    """Standardises the head on frozen features and, with `fit`, loads the regression's solution.

    The verdicts on `requests` are read from the prompts alone, windows from at most `window_examples` of
    `answered` with the gate closed (a fresh slot would only disturb the frozen model). Both labels and both kinds
    of row weigh the same in all.
    """
    prompts = [(e.input_ids[: _prompt_end(e)], _requests_only(e.layout)) for e in requests]
    whole = [(e.input_ids, _closed(e.layout)) for e in _with_windows(answered)[:window_examples]]
    chosen = [(ids, layout) for ids, layout in [*prompts, *whole] if layout.safety]
    device = str(parts.head.mean.device.type)
    with torch.autocast(device, dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        found = layout_features(
            parts, [ids for ids, _ in chosen], [layout for _, layout in chosen], batch_size, progress
        )
    features = torch.cat(found)
    labels = torch.tensor([row.label for _, layout in chosen for row in layout.safety])
    kinds = torch.tensor([int(row.kind) for _, layout in chosen for row in layout.safety])
    parts.head.standardise_on(features)  # type: ignore[operator]
    if fit:
        probe = LogisticProbe(parts.head.mean, parts.head.scale)  # type: ignore[arg-type]
        probe.fit(features, labels, _balance(labels, kinds), l2=l2)
        parts.head.set_linear(probe.weight.float(), float(probe.bias))  # type: ignore[operator]
    return WarmStart(features, labels, kinds)


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


def _with_windows(examples: Sequence[Example]) -> list[Example]:
    """Examples with windows, alternating between those that hold a harmful window and those that do not."""
    has = [e for e in examples if any(row.kind is RowKind.WINDOW for row in e.layout.safety)]
    bad = [e for e in has if any(row.kind is RowKind.WINDOW and row.label == 1.0 for row in e.layout.safety)]
    good = [e for e in has if not any(row.kind is RowKind.WINDOW and row.label == 1.0 for row in e.layout.safety)]
    n = min(len(bad), len(good))
    mixed = [e for pair in zip(_spread(bad, n), _spread(good, n), strict=True) for e in pair]
    return mixed or has


def _spread(examples: Sequence[Example], n: int) -> list[Example]:
    return [examples[i * len(examples) // n] for i in range(n)]


def _balance(labels: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
    """Row weights that give each (kind, label) group the same total; they sum to the number of rows."""
    groups = [(kinds == kind) & (labels == label) for kind in kinds.unique() for label in labels.unique()]
    groups = [group for group in groups if group.any()]
    weights = torch.zeros(len(labels), dtype=torch.float64)
    for group in groups:
        weights[group] = len(labels) / len(groups) / int(group.sum())
    return weights
