"""SafeModels that are tiny and random, for tests of what stands on top of them."""

from __future__ import annotations

from typing import Any

import torch

from safealign.decoding import DEFAULT_REFUSAL, DEFAULT_TRIGGER
from safealign.model import SafeModel
from safealign.modeling.attach import attach
from safealign.modeling.checkpoint import SafetyCard
from safealign.modeling.safety_token import HeadSettings
from safealign.modeling.tiny import tiny_model, tiny_tokenizer

HELLO = [{"role": "user", "content": "Hello there"}]
TALKS = [
    HELLO,
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is rain?"}],
    [{"role": "user", "content": "Go on"}, {"role": "assistant", "content": "It was a dark"}],
]
ALWAYS = {"query": -1e3, "window": -1e3, "prefix": -1e3}
NEVER = {"query": 1e3, "window": 1e3, "prefix": 1e3}


def build(thresholds: dict[str, float | None], seed: int = 0, **decoding: Any) -> SafeModel:
    """A tiny model with a random head and the thresholds given."""
    head = HeadSettings((0.5, 1.0), ("row", "mean", "last"))
    lm = tiny_model(seed=seed)
    with torch.no_grad():
        lm.lm_head.weight = torch.nn.Parameter(torch.randn(lm.lm_head.weight.shape))
    parts = attach(lm, head)
    with torch.no_grad():
        parts.token.weight.normal_(std=0.3)
        parts.head.linear.weight.normal_()
    options = {"max_new_tokens": 16, **decoding}
    card = SafetyCard(
        head, "append", False, DEFAULT_TRIGGER, DEFAULT_REFUSAL, options, thresholds, {"temperature": 2.0}
    )
    return SafeModel(lm, tiny_tokenizer(), parts, card)


def talkative_model(seed: int = 0) -> Any:
    """A random model that likes words and ends its turns, so that tiny samples are usable."""
    lm, tokenizer = tiny_model("llama", seed, layers=2), tiny_tokenizer()
    head = torch.nn.Linear(32, len(tokenizer))
    with torch.no_grad():
        head.weight.mul_(8.0)
        head.bias.zero_()
        spaced = [id_ for word, id_ in tokenizer.get_vocab().items() if word.startswith("Ġ")]
        head.bias[spaced] = 4.0
        head.bias[tokenizer.eos_token_id] = 2.5
    lm.lm_head = head
    return lm.eval()
