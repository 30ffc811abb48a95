"""Grouped-query attention of a few query rows without repeating the cached keys and values.

transformers copies a grouped cache once per query head when a forward carries a mask and more than one row, as each
decoding step with a safety row does. Here the query heads of a group become further query rows instead: the same sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "safealign_grouped_sdpa"
_FEW = 16  # query rows up to which packing pays; a prompt is better served by the plain path


def grouped_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """`[B, heads, Q, D]` queries on `[B, kv_heads, K, D]` keys under a mask `[B, 1, Q, K]`; `[B, Q, heads, D]`."""
    batch, heads, n_rows, width = query.shape
    groups = heads // key.shape[1]
    special = any(kwargs.get(name) is not None for name in ("softcap", "position_bias", "cache"))
    if special or groups == 1 or n_rows > _FEW or attention_mask is None or attention_mask.shape[1] != 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    packed = query.reshape(batch, key.shape[1], groups * n_rows, width)
    mask = attention_mask if n_rows == 1 else attention_mask.repeat(1, 1, groups, 1)
    scale = kwargs.get("scaling")
    found = torch.nn.functional.scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scale)
    return found.reshape(batch, heads, n_rows, value.shape[-1]).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, grouped_sdpa)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def grouped(lm: Any) -> Iterator[None]:
    """While open, a model with sdpa attention over shared keys runs the grouped form; others are left alone."""
    config = lm.config
    if config._attn_implementation != "sdpa" or not _gains(config):
        yield
        return
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


def _gains(config: Any) -> bool:
    """Whether query heads share keys. Not for models with an indexer: under a name that its code does not know, the
    keys that it chose are handed on instead of masked, and would be lost.
    """
    if any(name.startswith(("index", "sparse")) for name in vars(config)):
        return False
    heads, shared = getattr(config, "num_attention_heads", None), getattr(config, "num_key_value_heads", None)
    return bool(heads and shared and shared < heads)
