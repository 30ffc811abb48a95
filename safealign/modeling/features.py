"""Pooled states of safety rows and their logits, for whole layouts without a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

from safealign.layout.collate import SafetyBatch, collate_layouts
from safealign.layout.layout import Layout
from safealign.modeling.attach import Capture, DeepEnough, RowPlan, SafetyParts
from safealign.modeling.safety_token import HeadSettings


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
) -> list[torch.Tensor]:
    """Head inputs of every safety row, one `[S_i, width]` tensor per layout, in the given order, on the CPU."""
    return _by_batches(parts, input_ids, layouts, batch_size, progress, batch_features)


def layout_logits(
    parts: SafetyParts,
    input_ids: Sequence[Sequence[int]],
    layouts: Sequence[Layout],
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> list[torch.Tensor]:
    """Safety logits of every safety row, one `[S_i]` fp32 tensor per layout, in the given order, on the CPU."""
    return _by_batches(parts, input_ids, layouts, batch_size, progress, batch_logits)


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
    return _by_batches(parts, input_ids, layouts, batch_size, None, _token_states, rows)


def _token_states(parts: SafetyParts, capture: Capture, batch: SafetyBatch) -> torch.Tensor:
    return capture.at(parts.token_depths).flatten(-2)


@torch.no_grad()
def _by_batches(
    parts: SafetyParts,
    input_ids: Sequence[Sequence[int]],
    layouts: Sequence[Layout],
    batch_size: int,
    progress: Callable[[int], None] | None,
    read: Callable[[SafetyParts, Capture, SafetyBatch], torch.Tensor],
    rows: Sequence[Sequence[int]] | None = None,
) -> list[torch.Tensor]:
    """What `read` finds for each layout: of its safety rows, or of the text rows named in `rows`."""
    results: dict[int, torch.Tensor] = {}
    device = parts.lm.get_input_embeddings().weight.device  # type: ignore[operator]
    for chosen in _length_batches([layout.n_text + len(layout.safety) for layout in layouts], batch_size):
        batch = collate_layouts([layouts[i] for i in chosen]).to(device)
        ids = pad_ids([input_ids[i] for i in chosen]).to(device)
        plan = RowPlan(batch.n_safety, batch.mask, batch.position_ids, features_only=True)
        with parts.armed(plan) as capture, suppress(DeepEnough):
            parts.decoder(input_ids=ids, use_cache=False)
        values = read(parts, capture, batch).cpu()
        for row, index in enumerate(chosen):
            results[index] = values[row, : len(layouts[index].safety)] if rows is None else values[row, rows[index]]
        if progress is not None:
            progress(len(chosen))
    return [results[i] for i in range(len(layouts))]


def pad_ids(rows: Sequence[Sequence[int]], value: int = 0) -> torch.Tensor:
    """Pads id sequences on the right to one `[B, T]` tensor; the mask, not the value, hides the padding."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *([value] * (width - len(row)))] for row in rows])


def _length_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Batches of similar length, longest first, so that little padding is computed."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
