"""Grouped-query attention of a few query rows without repeating the cached keys and values, and of packed rows.

transformers copies a grouped cache once per query head when a forward carries a mask and more than one row, as each
decoding step with a safety row does. Here the query heads of a group become further query rows instead: the same sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from safealign.decoding.packing import Packing

NAME = "safealign_grouped_sdpa"
# `model_type`s whose attention takes packed rows (tests/architectures): others may count rows by their ids' shape.
PACKED = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi", "phi3", "olmo2"})
_FEW = 16  # query rows up to which making them of query heads pays


class _Forward:
    """One forward under way: its packing, and its masks as the grouped form takes them, which all layers share."""

    def __init__(self, packing: Packing | None) -> None:
        self.packing = packing
        # The mask is kept beside what was made of it: its id would be another tensor's once it is gone.
        self._masks: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def repeated(self, mask: torch.Tensor, groups: int) -> torch.Tensor:
        """`[B, 1, Q, K]` to `[B, 1, groups * Q, K]`."""
        key = id(mask), groups
        if key not in self._masks:
            self._masks[key] = mask, mask.repeat(1, 1, groups, 1)
        return self._masks[key][1]


_forward: ContextVar[_Forward | None] = ContextVar("forward", default=None)


def grouped_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """`[B, heads, Q, D]` queries on `[B, kv_heads, K, D]` keys under a mask `[B, 1, Q, K]`; `[B, Q, heads, D]`.

    Packed queries are `[1, heads, P, D]`, and so is what comes back: `[1, P, heads, D]`.
    """
    forward = _forward.get()
    packing = forward.packing if forward is not None else None
    if packing is None:
        return _attend(module, query, key, value, attention_mask, **kwargs), None
    found = _attend(module, packing.spread(query), key, value, attention_mask, **kwargs)
    return packing.gather(found), None


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> torch.Tensor:
    batch, heads, n_rows, width = query.shape
    groups = heads // key.shape[1]
    special = any(kwargs.get(name) is not None for name in ("softcap", "position_bias", "cache"))
    many = n_rows > _FEW
    # With a mask, shared keys leave the fast kernels of other devices than the CPU.
    plain = special or groups == 1 or (many and query.device.type != "cpu")
    if plain or attention_mask is None or attention_mask.shape[1] != 1:
        found: torch.Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)[0]
        return found
    attend, scale = torch.nn.functional.scaled_dot_product_attention, kwargs.get("scaling")
    if many:
        found = attend(query, key, value, attn_mask=attention_mask, scale=scale, enable_gqa=True)
        return found.transpose(1, 2).contiguous()
    packed = query.reshape(batch, key.shape[1], groups * n_rows, width)
    mask = attention_mask
    if n_rows > 1:
        mask = (_forward.get() or _Forward(None)).repeated(mask, groups)
    found = attend(packed, key, value, attn_mask=mask, scale=scale)
    return found.reshape(batch, heads, n_rows, value.shape[-1]).transpose(1, 2).contiguous()


AttentionInterface.register(NAME, grouped_sdpa)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def grouped(lm: Any, packing: Packing | None = None) -> Iterator[None]:
    """While open, a model with sdpa attention over shared keys runs the grouped form; others are left alone.

    `packing` is for the models that `packs` names.
    """
    config = lm.config
    if not groups(lm):
        yield
        return
    config._attn_implementation = NAME
    token = _forward.set(_Forward(packing))
    try:
        yield
    finally:
        _forward.reset(token)
        config._attn_implementation = "sdpa"


def packs(lm: Any) -> bool:
    """Whether padding may be left out of this model's forwards: the grouped form, and code that was tried with it."""
    return lm.config.model_type in PACKED and groups(lm)


def groups(lm: Any) -> bool:
    """Whether this model runs the grouped form: sdpa attention whose query heads share keys.

    Not a model with an indexer: under a name that its code does not know, the keys that it chose are handed on instead
    of masked, and would be lost.
    """
    config = lm.config
    if config._attn_implementation != "sdpa" or any(name.startswith(("index", "sparse")) for name in vars(config)):
        return False
    heads, shared = getattr(config, "num_attention_heads", None), getattr(config, "num_key_value_heads", None)
    return bool(heads and shared and shared < heads)
