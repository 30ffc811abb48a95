"""Loads base models by name and exports from disk, without remote code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from safealign.assets import model_path
from safealign.data.plain_template import NAME as PLAIN
from safealign.data.plain_template import plain_template
from safealign.errors import CheckpointError, ConfigError
from safealign.modeling.attach import SafetyParts, attach
from safealign.modeling.checkpoint import CARD_FILE, SafetyCard, read_card, restore_safety
from safealign.modeling.manifest import verify_manifest
from safealign.modeling.precision import serving_dtype
from safealign.modeling.quantization import Quantization, quantization_of
from safealign.modeling.tiny import tiny_model, tiny_tokenizer, write_tiny

TINY_NAME = "tiny_random"
ADAPTER_FILE, BASE_FILE = "adapter_config.json", "base.json"


@dataclass
class LoadedExport:
    """A causal LM (PEFT-wrapped for adapter exports), its tokenizer, safety parts (None: it has no head) and card.

    `base_name`: of the base that the folder refers to; None where it holds whole weights.
    """

    lm: Any
    tokenizer: Any
    parts: SafetyParts | None
    card: SafetyCard
    path: Path
    base_name: str | None = None


def load_base(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    attn: str = "sdpa",
    chat_template: str | None = None,
    offline: bool | None = None,
    quantization: Quantization | None = None,
) -> tuple[Any, Any]:
    """Loads `(causal LM, tokenizer)` by asset name, local path or hub id, in eval mode, in 4 bits if asked for.

    Raises AssetError when it cannot be found and ConfigError when it has no chat template and none is given.
    """
    model, tokenizer = _by_name(name, dtype, attn, offline, quantization)
    if chat_template is not None:
        plain = chat_template == PLAIN
        tokenizer.chat_template = plain_template(tokenizer) if plain else _template_text(chat_template)
    if not tokenizer.chat_template:
        raise ConfigError(
            f"{name} has no chat template: model.chat_template=plain gives it one, or give your own with "
            "model.chat_template=PATH_OR_TEXT"
        )
    return model, tokenizer


def _by_name(
    name: str, dtype: torch.dtype, attn: str, offline: bool | None, quantization: Quantization | None = None
) -> tuple[Any, Any]:
    """A model by name; `tiny_random[:architecture[:seed]]` is made in code."""
    first, *rest = name.split(":")
    if first == TINY_NAME:
        made = rest[0] if rest else "llama", int(rest[1]) if len(rest) > 1 else 0
        if quantization is not None:  # weights are quantised on their way from a file
            with TemporaryDirectory() as folder:
                return load_folder(write_tiny(folder, *made), dtype, attn, quantization)
        model: Any = tiny_model(*made)
        model.set_attn_implementation(attn if attn != "sdpa" or model._supports_sdpa else "eager")
        return model.to(dtype), tiny_tokenizer()
    return load_folder(model_path(name, offline=offline), dtype, attn, quantization)


def load_folder(
    path: Path | str, dtype: torch.dtype, attn: str = "sdpa", quantization: Quantization | None = None
) -> tuple[Any, Any]:
    """`(causal LM, tokenizer)` from a folder or hub id, in eval mode; eager attention where there is no sdpa."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # weights load in a second; bars would bury what the command says
    how: dict[str, Any] = {"dtype": dtype, "attn_implementation": attn}
    if quantization is not None:
        how["quantization_config"] = quantization.config(dtype)
    try:
        model = AutoModelForCausalLM.from_pretrained(path, **how)
    except ValueError as error:
        # sdpa has no soft caps, so Gemma-2's code refuses it (and nothing else says so before).
        if attn != "sdpa" or "scaled_dot_product_attention" not in str(error):
            raise
        model = AutoModelForCausalLM.from_pretrained(path, **how | {"attn_implementation": "eager"})
    return model.eval(), AutoTokenizer.from_pretrained(path)


def load_export(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    attn: str = "sdpa",
    device: str = "cpu",
    offline: bool | None = None,
    verify: bool = True,
) -> LoadedExport:
    """Loads an export folder or hub id: model or adapter, tokenizer, verified safety parts and card.

    Raises CheckpointError when it is incomplete, damaged, of another format, or its head was not restored.
    """
    folder = _export_folder(path, offline)
    card = read_card(folder)
    if verify:
        verify_manifest(folder, CARD_FILE)
    base_name = None
    if (folder / BASE_FILE).exists():
        base_name = str(json.loads((folder / BASE_FILE).read_text(encoding="utf-8"))["name"])
        lm, tokenizer, causal = _load_on_base(folder, dtype, attn, offline)
    else:
        lm, tokenizer = load_folder(folder, dtype, attn)
        causal = lm
    parts = None
    if card.head is not None:
        parts = attach(causal, card.head)
        restore_safety(folder, parts)
    if quantization_of(causal) is None:  # 4-bit weights stay on the GPU that they were made on
        lm.to(device)
    return LoadedExport(lm, tokenizer, parts, card, folder, base_name)


def _export_folder(path: str | Path, offline: bool | None) -> Path:
    if Path(path).is_dir():
        return Path(path)
    if str(path).startswith((".", "/", "~")) or str(path).count("/") != 1:
        raise CheckpointError(f"no export at {path}: give the export folder of a run, e.g. outputs/NAME/export")
    return Path(model_path(str(path), offline=offline))


def _load_on_base(folder: Path, dtype: torch.dtype, attn: str, offline: bool | None) -> tuple[Any, Any, Any]:
    """`(model, tokenizer, causal LM)` of a folder that names its base, with an adapter or without one."""
    from transformers import AutoTokenizer

    base = json.loads((folder / BASE_FILE).read_text(encoding="utf-8"))
    asked, quantization = base.get("quantization"), None
    if asked:  # in the format that they were quantised from, or other numbers come out
        quantization, dtype = Quantization(str(asked["kind"]), bool(asked["double"])), serving_dtype(str(asked["from"]))
    causal, _ = _by_name(base["name"], dtype, attn, offline, quantization)
    if weights_digest(causal) != base["weights_digest"]:
        raise CheckpointError(
            f"{folder} was trained on other weights than {base['name']} holds now; fetch the same base model again"
        )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not (folder / ADAPTER_FILE).exists():
        return causal, tokenizer, causal
    from peft import PeftModel

    return PeftModel.from_pretrained(causal, folder).eval(), tokenizer, causal


def weights_digest(model: Any) -> str:
    """Short digest of a model's weights: names, shapes and the first values of each, in fp32."""
    import hashlib

    digest = hashlib.sha256()
    for name, value in sorted(model.named_parameters()):
        if ".lora_" in name or "safety_" in name:
            continue
        head = value.detach().reshape(-1)[:64].to(torch.bfloat16).float().cpu()
        digest.update(f"{name.replace('.base_layer', '')}{tuple(value.shape)}".encode())
        digest.update(head.numpy().tobytes())
    return digest.hexdigest()[:32]


def _template_text(value: str) -> str:
    path = Path(value)
    return path.read_text(encoding="utf-8") if len(value) < 4096 and "{" not in value and path.is_file() else value
