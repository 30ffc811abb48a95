"""Pooled states of safety rows and their logits, for whole layouts without a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from safealign.layout.collate import SafetyBatch
from safealign.layout.layout import Layout
from safealign.modeling.attach import Capture, RowPlan, SafetyParts
from safealign.modeling.feature_cache import FeatureCache
from safealign.modeling.hidden import HiddenExtractor
from safealign.modeling.safety_token import HeadSettings
from safealign.modeling.texts import Text


@dataclass
class PooledStates:
    """States that a head may read, each `[B, S, n_depths, H]` in fp32."""

    row: torch.Tensor
    mean: torch.Tensor
    last: torch.Tensor


def pool_states(capture: Capture, batch: SafetyBatch) -> PooledStates:
    """Reads safety-row, span-mean and span-last states out of an armed forward."""
    states = capture.states
    n_text = states.shape[1] - batch.n_safety
    text, row = states[:, :n_text], states[:, n_text:]
    mean = torch.einsum("bst,btdh->bsdh", batch.pool.to(text.dtype), text)
    last = text[torch.arange(len(text), device=text.device)[:, None], batch.last]
    return PooledStates(row, mean, last)


def batch_features(parts: SafetyParts, capture: Capture, batch: SafetyBatch) -> torch.Tensor:
    """Head inputs `[B, S, width]` of every safety row."""
    pooled = pool_states(capture, batch)
    return parts.features(pooled.row, pooled.mean, pooled.last)


def batch_logits(parts: SafetyParts, capture: Capture, batch: SafetyBatch) -> torch.Tensor:
    """Safety logits `[B, S]` in fp32."""
    return parts.head(batch_features(parts, capture, batch), parts.readouts(batch.kinds))


def feature_columns(whole: HeadSettings, part: HeadSettings, n_layers: int, hidden_size: int) -> torch.Tensor:
    """Which head inputs of a head that reads `whole` a head that reads `part` of it would have, in its order.

    Raises ValueError when `part` reads something that `whole` does not.
    """
    depths = whole.blocks(n_layers)
    try:
        places = [
            whole.pool.index(pool) * len(depths) + depths.index(depth)
            for pool in part.pool
            for depth in part.blocks(n_layers)
        ]
    except ValueError as error:
        raise ValueError(f"a head that reads {whole} has no states for one that reads {part}") from error
    return torch.cat([torch.arange(place * hidden_size, (place + 1) * hidden_size) for place in places])


def plan_for(batch: SafetyBatch, compact: torch.Tensor | None = None) -> RowPlan:
    """The armed forward that a collated batch asks for."""
    return RowPlan(batch.n_safety, batch.mask, batch.position_ids, compact)


def layout_features(
    parts: SafetyParts,
    input_ids: Sequence[Sequence[int]],
    layouts: Sequence[Layout],
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
    cache: FeatureCache | None = None,
) -> list[torch.Tensor]:
    """Head inputs of every safety row, one `[S_i, width]` tensor per layout, in the given order, on the CPU."""
    texts = [Text.of_layout(ids, layout) for ids, layout in zip(input_ids, layouts, strict=True)]
    found = HiddenExtractor.of_head(parts, batch_size).read(texts, cache=cache, progress=progress)
    return [features.flatten(1) for features in found]


@torch.no_grad()
def layout_logits(
    parts: SafetyParts,
    input_ids: Sequence[Sequence[int]],
    layouts: Sequence[Layout],
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> list[torch.Tensor]:
    """Safety logits of every safety row, one `[S_i]` fp32 tensor per layout, in the given order, on the CPU."""
    found = layout_features(parts, input_ids, layouts, batch_size, progress)
    if not found:
        return []
    device = parts.lm.get_input_embeddings().weight.device  # type: ignore[operator]
    kinds = torch.tensor([int(row.kind) for layout in layouts for row in layout.safety], device=device)
    logits: torch.Tensor = parts.head(torch.cat(found).to(device), parts.readouts(kinds)).cpu()
    return list(logits.split([len(layout.safety) for layout in layouts]))


def token_features(
    parts: SafetyParts,
    input_ids: Sequence[Sequence[int]],
    layouts: Sequence[Layout],
    rows: Sequence[Sequence[int]],
    batch_size: int = 32,
) -> list[torch.Tensor]:
    """The token head's inputs at the given text rows, one `[len(rows_i), width]` tensor per layout, on the CPU.

    A response row sees the slot version that its layout says.
    """
    texts = [Text.at_rows(ids, at, layout) for ids, at, layout in zip(input_ids, rows, layouts, strict=True)]
    found = HiddenExtractor.of_token_head(parts, batch_size).read(texts)
    return [features.flatten(1) for features in found]
