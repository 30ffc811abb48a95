"""Held-out language-model loss of answers, with the slot in sight as at inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from safealign.layout import Layout, Rendered, build_layout, request_row
from safealign.layout.collate import collate_layouts
from safealign.modeling.attach import SafetyParts
from safealign.modeling.features import plan_for
from safealign.modeling.texts import pad_ids

IGNORED = -100


@torch.no_grad()
def answer_losses(
    lm: Any,
    parts: SafetyParts | None,
    conversations: Sequence[Rendered],
    *,
    placement: str = "append",
    gate: bool = True,
    batch_size: int = 4,
    progress: Callable[[int], None] | None = None,
) -> list[float]:
    """Mean negative log-likelihood per response token (nats) of each conversation, in order.

    `parts` None scores the bare model; `gate` False the model with safety rows that no text sees. Batches are
    small and of similar length: the logits of a whole batch are in memory, several times over.
    """
    losses: dict[int, float] = {}
    order = sorted(range(len(conversations)), key=lambda i: -len(conversations[i].input_ids))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        found = _batch(lm, parts, [conversations[i] for i in chosen], placement, gate)
        losses.update(zip(chosen, found, strict=True))
        if progress is not None:
            progress(len(chosen))
    return [losses[i] for i in range(len(conversations))]


def _batch(lm: Any, parts: SafetyParts | None, batch: Sequence[Rendered], placement: str, gate: bool) -> list[float]:
    ids = pad_ids([item.input_ids for item in batch]).to(lm.device)
    labels = pad_ids([_labels(item) for item in batch], IGNORED).to(lm.device)
    if parts is None:
        mask = pad_ids([[1] * len(item.input_ids) for item in batch]).to(lm.device)
        logits = lm(input_ids=ids, attention_mask=mask, use_cache=False).logits
    else:
        safety = collate_layouts([_layout(item, placement, gate) for item in batch]).to(lm.device)
        with parts.armed(plan_for(safety)):
            logits = lm(input_ids=ids, use_cache=False).logits
    per_token = cross_entropy(
        logits[:, :-1].float().transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none"
    )
    counts = (labels[:, 1:] != IGNORED).sum(dim=1).clamp(min=1)
    values: list[float] = (per_token.sum(dim=1) / counts).tolist()
    return values


def _layout(item: Rendered, placement: str, gate: bool) -> Layout:
    return build_layout(item, [request_row(item, placement)], gate=gate)


def _labels(item: Rendered) -> list[int]:
    start = item.response.start
    return [*([IGNORED] * start), *item.input_ids[start:]]
