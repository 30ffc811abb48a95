"""The shape of a decoder (Llama's architecture and its kin), from its config or from a table of published ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from safealign.errors import ConfigError


@dataclass(frozen=True)
class Shape:
    """Sizes of a causal LM; `tied`: input embedding and output layer are one matrix."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool

    @property
    def linear(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each linear layer of one block."""
        kv = self.hidden // self.heads * self.kv_heads
        attention = [(self.hidden, self.hidden), (self.hidden, kv), (self.hidden, kv), (self.hidden, self.hidden)]
        up = (self.hidden, self.intermediate)
        return [*attention, up, up, (self.intermediate, self.hidden)]

    @property
    def block(self) -> int:
        """Weights of one block."""
        return sum(rows * columns for rows, columns in self.linear) + 2 * self.hidden

    @property
    def parameters(self) -> int:
        """All weights."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * self.block + embeddings + self.hidden

    def lora(self, rank: int) -> int:
        """Weights of a LoRA of this rank on every linear layer of the blocks."""
        return self.layers * sum(rank * (rows + columns) for rows, columns in self.linear)


# From the config.json that each model is published with.
PUBLISHED = {
    "smollm2_135m": Shape(30, 576, 1536, 9, 3, 49152, True),
    "meta-llama/Llama-3.2-1B-Instruct": Shape(16, 2048, 8192, 32, 8, 128256, True),
    "meta-llama/Llama-2-7b-chat-hf": Shape(32, 4096, 11008, 32, 32, 32000, False),
    "meta-llama/Meta-Llama-3-8B-Instruct": Shape(32, 4096, 14336, 32, 8, 128256, False),
    "meta-llama/Meta-Llama-3-70B-Instruct": Shape(80, 8192, 28672, 64, 8, 128256, False),
}


def shape_from(config: Any) -> Shape:
    """The shape in a transformers config. Raises ConfigError for one that lacks a size."""
    try:
        return Shape(
            config.num_hidden_layers,
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
            getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            config.vocab_size,
            bool(config.tie_word_embeddings),
        )
    except AttributeError as error:
        raise ConfigError(f"the sizes of this model cannot be read ({error}): plan with one like it") from error


def shape_of(name: str, offline: bool) -> Shape:
    """The shape of a model by asset name, hub id or folder; published ones need no network.

    Raises ConfigError where it cannot be found.
    """
    if name in PUBLISHED:
        return PUBLISHED[name]
    if name == "tiny_random":
        from safealign.modeling.tiny import tiny_model

        return shape_from(tiny_model().config)
    from transformers import AutoConfig

    try:
        return shape_from(AutoConfig.from_pretrained(name, local_files_only=offline))
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        known = ", ".join(PUBLISHED)
        raise ConfigError(f"model={name}: its config cannot be read ({first}); known without it: {known}") from error
