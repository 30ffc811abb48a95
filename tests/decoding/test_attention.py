"""Grouped attention: the sums of transformers' own, and only where a model's code cannot tell the difference."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from safealign.decoding.attention import NAME, grouped, grouped_sdpa


def model_with(**config: Any) -> Any:
    settings = {"_attn_implementation": "sdpa", "num_attention_heads": 4, "num_key_value_heads": 2, **config}
    return SimpleNamespace(config=SimpleNamespace(**settings))


@pytest.mark.parametrize("n_rows", [1, 2, 5])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_it_gives_what_sdpa_gives(n_rows: int, kv_heads: int) -> None:
    torch.manual_seed(0)
    query, (key, value) = torch.randn(3, 4, n_rows, 8), torch.randn(2, 3, kv_heads, 11, 8)
    allowed = torch.rand(3, 1, n_rows, 11) < 0.5
    allowed[..., 0] = True
    mask = torch.zeros(allowed.shape).masked_fill_(~allowed, torch.finfo(torch.float32).min)
    module: Any = SimpleNamespace(num_key_value_groups=4 // kv_heads, is_causal=True)
    wanted, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    found, _ = grouped_sdpa(module, query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(found, wanted)


def test_the_model_is_as_before_whatever_happens_inside() -> None:
    lm = model_with()
    with pytest.raises(KeyError), grouped(lm):
        with grouped(lm):
            assert lm.config._attn_implementation == NAME
        raise KeyError
    assert lm.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({"_attn_implementation": "eager"}, id="eager"),
        pytest.param({"num_key_value_heads": 4}, id="nothing to group"),
        pytest.param({"num_key_value_heads": None}, id="no groups"),
        pytest.param({"index_topk": 2048}, id="sparse"),
    ],
)
def test_other_models_are_left_alone(config: dict[str, Any]) -> None:
    """An indexer's choice of keys goes into the mask under the names that its code knows, and is lost under others."""
    lm = model_with(**config)
    with grouped(lm):
        assert lm.config._attn_implementation != NAME
