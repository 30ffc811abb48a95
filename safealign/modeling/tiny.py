"""A tiny random chat model with its own tokenizer, made in code: tests and `debug=smoke` run on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
WINDOW = 8  # of the tiny models that have sliding windows: shorter than any rendered prompt
_GQA = {"num_key_value_heads": 2}
_EVERY_OTHER = ["sliding_attention", "full_attention"]
# Name -> transformers' class prefix and what its config needs beside the common settings.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _GQA),
    "mistral": ("Mistral", _GQA | {"sliding_window": WINDOW, "head_dim": 8}),
    "qwen2": ("Qwen2", _GQA),
    "qwen3": (
        "Qwen3",
        _GQA | {"head_dim": 8, "use_sliding_window": True, "sliding_window": WINDOW, "layer_types": _EVERY_OTHER},
    ),
    # Soft caps so low that they bend what random weights give; a query scale that is not the default one.
    "gemma2": (
        "Gemma2",
        _GQA
        | {
            "head_dim": 8,
            "sliding_window": WINDOW,
            "layer_types": _EVERY_OTHER,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
            "query_pre_attn_scalar": 16,
        },
    ),
    "gemma3": (
        "Gemma3",
        _GQA | {"head_dim": 8, "sliding_window": WINDOW, "layer_types": _EVERY_OTHER, "query_pre_attn_scalar": 16},
    ),
    "phi": ("Phi", _GQA),
    "phi3": ("Phi3", _GQA | {"sliding_window": WINDOW}),
    "gpt_neox": ("GPTNeoX", {}),
    "olmo2": ("Olmo2", _GQA),
}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Frequent English pairs, so that tokens of several characters (and of space + letter) occur; Ġ is a space.
_MERGES = (
    "t h|h e|th e|i n|e r|a n|r e|o n|e s|Ġ t|Ġ a|o r|in g|a t|e n|o u|Ġ s|i s|i t|an d|Ġ w|Ġ the|o f|Ġ c|"
    "Ġ b|e d|Ġ p|a l|a r|l l|o m|Ġ i|Ġ y|Ġy ou|Ġ h|Ġ f|Ġ m|Ġ o|Ġ and|Ġt o"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 299 ids (every byte is one) with ChatML control tokens and template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    merges = [(left, right) for left, _, right in (pair.partition(" ") for pair in _MERGES.split("|"))]
    words = [END_OF_TEXT, TURN_START, TURN_END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [left + right for left, right in merges]
    backend = Tokenizer(models.BPE(vocab={word: id_ for id_, word in enumerate(words)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END_OF_TEXT, TURN_START, TURN_END])
    fast: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = fast(
        tokenizer_object=backend, bos_token=END_OF_TEXT, eos_token=TURN_END, pad_token=END_OF_TEXT
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_model(architecture: str = "llama", seed: int = 0, layers: int = 4) -> PreTrainedModel:
    """A random causal LM in fp32 for `tiny_tokenizer`: hidden 32, 4 heads, tied embeddings, windows of 8 if any.

    `architecture`: a key of `ARCHITECTURES`. The caller's random state is left as it was. Raises ValueError for an
    unknown architecture.
    """
    import transformers

    if architecture not in ARCHITECTURES:
        raise ValueError(f"unknown tiny architecture {architecture!r}: choose one of {', '.join(ARCHITECTURES)}")
    prefix, more = ARCHITECTURES[architecture]
    config_class = getattr(transformers, f"{prefix}TextConfig", None) or getattr(transformers, f"{prefix}Config")
    model_class = getattr(transformers, f"{prefix}ForCausalLM")
    tokenizer = tiny_tokenizer()
    if "layer_types" in more:
        more = more | {"layer_types": [more["layer_types"][layer % 2] for layer in range(layers)]}
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = model_class(config)
    model.train(False)
    return model


def write_tiny(path: str | Path, architecture: str = "llama", seed: int = 0) -> Path:
    """Save `tiny_model` and `tiny_tokenizer` to `path` in the Hugging Face format; returns the folder."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tiny_model(architecture, seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
