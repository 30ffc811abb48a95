"""The model that the decoding benchmark measures: an export, or a random Llama of a given size."""

from __future__ import annotations

import torch

from safealign.errors import ConfigError
from safealign.model import SafeModel, load
from safealign.modeling.attach import attach
from safealign.modeling.checkpoint import SafetyCard
from safealign.modeling.precision import serving_dtype
from safealign.modeling.safety_token import HeadSettings
from safealign.modeling.tiny import tiny_tokenizer

HEAD = HeadSettings((0.5, 0.7, 0.9), ("row", "mean", "last"), True, (0.6,))


def load_subject(name: str) -> SafeModel:
    """`random:HIDDENxLAYERS`, or an export's path, in the number format in which it is served."""
    if not name.startswith("random:"):
        return load(name, dtype="auto")
    try:
        hidden, layers = (int(part) for part in name.removeprefix("random:").split("x"))
    except ValueError as error:
        raise ConfigError(f"model={name}: write random:HIDDENxLAYERS, such as random:2048x16") from error
    return random_llama(hidden, layers)


def random_llama(hidden: int, layers: int) -> SafeModel:
    """Random weights, heads of 64, four query heads to a key head; the tiny tokenizer, so that prompts are the same."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        max_position_embeddings=4096,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        lm = LlamaForCausalLM(config).to(serving_dtype("auto")).eval()
    parts = attach(lm, HEAD)
    card = SafetyCard(HEAD, "append", False, "Sorry, no", "No.", thresholds={"token": 10.0})
    return SafeModel(lm, tokenizer, parts, card)
