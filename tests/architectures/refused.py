"""Tiny instances of models that cannot carry the safety token's mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as t

_SMALL: dict[str, Any] = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_WIDE: dict[str, Any] = _SMALL | {"hidden_size": 16, "num_hidden_layers": 2}
_HEADS: dict[str, Any] = _WIDE | {"num_attention_heads": 2, "intermediate_size": 16}
_LOCAL: dict[str, Any] = {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]}
_T5: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 8, "num_layers": 1, "num_heads": 2}
_DYNAMIC: dict[str, Any] = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
_LONG: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "factor": 8.0,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0] * 4,
    "long_factor": [8.0] * 4,
}

# What it is -> the model, and words of the reason.
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "T5 (encoder-decoder)": (lambda: t.T5ForConditionalGeneration(t.T5Config(**_SMALL, **_T5)), "encoder-decoder"),
    "BLOOM (ALiBi)": (
        lambda: t.BloomForCausalLM(t.BloomConfig(**_SMALL, hidden_size=16, n_layer=2, n_head=2)),
        "ALiBi",
    ),
    "MPT (ALiBi)": (lambda: t.MptForCausalLM(t.MptConfig(**_SMALL, d_model=16, n_layers=2, n_heads=2)), "ALiBi"),
    "Falcon with ALiBi": (
        lambda: t.FalconForCausalLM(t.FalconConfig(**_WIDE, num_attention_heads=2, alibi=True)),
        "ALiBi",
    ),
    "Mamba (recurrent)": (lambda: t.MambaForCausalLM(t.MambaConfig(**_WIDE)), "linear_attention"),
    "RWKV (recurrent)": (lambda: t.RwkvForCausalLM(t.RwkvConfig(**_WIDE)), "does not feel a later token"),
    "Jamba (partly recurrent)": (
        lambda: t.JambaForCausalLM(
            t.JambaConfig(**_HEADS, num_key_value_heads=1, attn_layer_period=2, attn_layer_offset=1)
        ),
        "linear_attention",
    ),
    "GPT-Neo (local attention in the module)": (
        lambda: t.GPTNeoForCausalLM(t.GPTNeoConfig(**_SMALL, hidden_size=16, **_LOCAL)),
        "does not feel a later token",
    ),
    "Phi-3 with a context of 128k (longrope)": (
        lambda: t.Phi3ForCausalLM(t.Phi3Config(**_HEADS, original_max_position_embeddings=32, rope_parameters=_LONG)),
        "type longrope",
    ),
    "Llama with dynamic rotary positions": (
        lambda: t.LlamaForCausalLM(t.LlamaConfig(**_HEADS, rope_parameters=_DYNAMIC)),
        "type dynamic",
    ),
    "Cohere-2 (windows not tested)": (lambda: t.Cohere2ForCausalLM(t.Cohere2Config(**_HEADS)), "never tested"),
}
