"""The one place that decides who may attend to whom: float additive attention masks from layouts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from safealign.layout.layout import NO_VERSION, Layout


def build(
    layouts: Sequence[Layout],
    n_text: int | None = None,
    n_safety: int | None = None,
    window: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Returns the additive mask `[B, 1, Q, K]` (0 = may attend, dtype's minimum = may not), Q = K = T + S.

    Text rows are padded on the right to `n_text`, safety rows to `n_safety`; padding attends to itself alone, so
    that no softmax is empty. `window`: sliding-window size of the layer, counted among text rows; the slot is
    exempt. Float, because a bool mask is silently wrong on eager attention.
    """
    n_text = max(layout.n_text for layout in layouts) if n_text is None else n_text
    n_safety = max(len(layout.safety) for layout in layouts) if n_safety is None else n_safety
    allowed = torch.stack([_allowed(layout, n_text, n_safety, window) for layout in layouts])
    return additive(allowed, dtype).unsqueeze(1)


def windowed(
    mask: torch.Tensor,
    window: int,
    text_rows: torch.Tensor | None = None,
    text_columns: torch.Tensor | None = None,
    n_safety: int = 0,
) -> torch.Tensor:
    """The additive `mask` `[B, 1, Q, K]` as layers with a sliding window see it.

    A text row loses the text rows that lie `window` or more before it; the slot and all safety rows are exempt.
    `text_rows` `[B, Q]` and `text_columns` `[B, K]` (or `[K]`) say which text row each is, -1 for one that is none; by
    default the last `n_safety` of equally many rows and columns are safety rows.
    """
    if mask.shape[-1] <= window:
        return mask
    if text_rows is None or text_columns is None:
        at = torch.arange(mask.shape[-1], device=mask.device)
        text_rows = text_columns = torch.where(at < len(at) - n_safety, at, -1).unsqueeze(0)
    rows, columns = text_rows.unsqueeze(-1), text_columns.unsqueeze(-2)
    far = (rows - columns >= window) & (columns >= 0)
    return mask.masked_fill(far.unsqueeze(-3), torch.finfo(mask.dtype).min)


def additive(allowed: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Turns a bool "may attend" tensor into an additive float mask of the same shape."""
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)


def _allowed(layout: Layout, n_text: int, n_safety: int, window: int | None) -> torch.Tensor:
    size = n_text + n_safety
    allowed = torch.eye(size, dtype=torch.bool)
    length = layout.n_text
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    if window is not None:
        causal &= ~torch.ones(length, length, dtype=torch.bool).tril(-window)
    if layout.blocks:
        causal &= _same_block(layout)
    allowed[:length, :length] = causal
    _open_slot(allowed, layout, n_text)
    for index, row in enumerate(layout.safety):
        for span in row.attends:
            allowed[n_text + index, span.start : span.end] = True
    return allowed


def _same_block(layout: Layout) -> torch.Tensor:
    """Bool `[T, T]`: whether two text rows belong to the same of the packed texts."""
    numbers = torch.repeat_interleave(torch.tensor([block.length for block in layout.blocks]))
    return numbers[:, None] == numbers[None, :]


def _open_slot(allowed: torch.Tensor, layout: Layout, n_text: int) -> None:
    """Lets each response row see its one slot version."""
    for row, version in enumerate(layout.sees):
        if version != NO_VERSION:
            allowed[row, n_text + version] = True
