"""Converts a quantised GGUF file once into the full-precision format that transformers trains and saves."""

from __future__ import annotations

from pathlib import Path

from safealign.errors import AssetError

# Raised when the conversion changes, so that older results in the cache are not taken for new ones.
CONVERSION = 1


def convert(gguf: Path, target: Path) -> None:
    """Write the dequantised fp32 model and its tokenizer to the folder `target` (takes about 20 s for 135M).

    Raises AssetError when the libraries that read GGUF are missing or cannot read the file.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        where, file = str(gguf.parent), gguf.name
        # Without dequantize=True transformers marks the model as quantised and refuses to train or save it.
        config = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            where, gguf_file=file, quantization_config=config, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=file)
    except ImportError as error:
        raise AssetError(f"{gguf.name} cannot be converted ({error}): pip install gguf accelerate") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise AssetError(f"{gguf.name} cannot be converted: {error}") from error
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
