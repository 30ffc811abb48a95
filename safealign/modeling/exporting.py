"""Exports a trained model: the LM merged or its adapter, loadable by any other tool, with the safety parts beside."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from safealign.errors import CheckpointError
from safealign.modeling.attach import SafetyParts
from safealign.modeling.checkpoint import SafetyCard, save_safety
from safealign.modeling.loading import ADAPTER_FILE, BASE_FILE, weights_digest
from safealign.modeling.manifest import publish
from safealign.modeling.precision import DTYPES
from safealign.modeling.quantization import merged_twin, quantization_of

_SAFETY_PREFIX = "safety_"


def export_model(
    folder: Path,
    model: Any,
    tokenizer: Any,
    parts: SafetyParts | None,
    card: SafetyCard,
    *,
    merge: bool,
    base_name: str,
    extras: Callable[[Path], None] | None = None,
) -> Path:
    """Writes an export atomically: under a temporary name, a manifest last, then renamed.

    `model`: the causal LM or its PEFT wrapper, left as it was. `parts` None: there is no safety head. `merge`: fold the
    adapter into the weights; else the adapter alone is written, with its base by name and digest. `extras` may add
    files before the manifest.
    """
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_model(temporary, model, tokenizer, parts, card, merge=merge, base_name=base_name)
    if extras is not None:
        extras(temporary)
    publish(temporary, folder)
    return folder


def write_model(
    folder: Path,
    model: Any,
    tokenizer: Any,
    parts: SafetyParts | None,
    card: SafetyCard,
    *,
    merge: bool,
    base_name: str,
    base_digest: str | None = None,
) -> None:
    """Writes an export's files into an existing folder: model or adapter, tokenizer, safety parts; no manifest.

    Of a model that was left as it was, `merge` False names the base alone.

    `base_digest`: the base weights' digest, where it is known already. Raises CheckpointError for empty tensors, and
    for safety parts that are not finite.
    """
    if hasattr(model, "peft_config") and not merge:
        _save_adapter(folder, model, base_name, base_digest)
    elif card.frozen and not merge:
        _name_base(folder, model, base_name, base_digest)
    else:
        _save_merged(folder, model)
    tokenizer.save_pretrained(folder)
    save_safety(folder, parts, card)


@contextmanager
def merged(model: Any) -> Iterator[None]:
    """While open, a PEFT model's adapter is folded into its weights: a third of the operations. Else nothing.

    4-bit weights are left alone: they would be rounded to 4 bits again with the adapter in them.
    """
    if not hasattr(model, "peft_config") or quantization_of(model) is not None:
        yield
        return
    causal = model.get_base_model()
    # Merging and unmerging rounds: the weights as they were go back afterwards.
    before = {n: p.detach().cpu().clone() for n, p in causal.named_parameters() if ".base_layer." in n}
    model.merge_adapter()
    try:
        yield
    finally:
        model.unmerge_adapter()
        with torch.no_grad():
            for name, value in before.items():
                causal.get_parameter(name).copy_(value)


def _save_merged(folder: Path, model: Any) -> None:
    """Saves the LM without its safety modules; an adapter is merged for the save and taken out again."""
    if not hasattr(model, "peft_config"):
        model.save_pretrained(folder, state_dict=_without_safety(model.state_dict()))
        return
    if quantization_of(model) is not None:
        merged_twin(model).save_pretrained(folder)
        return
    causal = model.get_base_model()
    with merged(model):
        state = {_plain_name(name): value for name, value in causal.state_dict().items() if ".lora_" not in name}
        causal.save_pretrained(folder, state_dict=_without_safety(state))
    for stray in (ADAPTER_FILE, "adapter_model.safetensors"):
        (folder / stray).unlink(missing_ok=True)


def _plain_name(name: str) -> str:
    return name.replace(".base_layer.", ".")


def _without_safety(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    kept = {name: value for name, value in state.items() if not name.startswith(_SAFETY_PREFIX)}
    empty = [name for name, value in kept.items() if value.numel() == 0]
    if empty:
        raise CheckpointError(f"refusing to export empty tensors ({', '.join(empty[:3])}): gather the weights first")
    return kept


def _save_adapter(folder: Path, model: Any, base_name: str, base_digest: str | None = None) -> None:
    """Saves the adapter as plain PEFT: no `modules_to_save`, so that any PEFT load of the bare LM works."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model)
    kept = {n: v.detach().cpu().contiguous() for n, v in state.items() if f".{_SAFETY_PREFIX}" not in n}
    if any(value.numel() == 0 for value in kept.values()):
        raise CheckpointError("refusing to export an adapter with empty tensors: gather the weights first")
    save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = copy.deepcopy(model.peft_config["default"])
    config.modules_to_save, config.inference_mode, config.base_model_name_or_path = None, True, base_name
    config.save_pretrained(folder)
    _name_base(folder, model.get_base_model(), base_name, base_digest)


def _name_base(folder: Path, causal: Any, base_name: str, base_digest: str | None) -> None:
    """Writes which model the folder belongs to, and the digest of its weights."""
    base: dict[str, Any] = {"name": base_name, "weights_digest": base_digest or weights_digest(causal)}
    if quantization := quantization_of(causal):
        table = causal.get_input_embeddings().weight
        names = {dtype: name for name, dtype in DTYPES.items()}
        base["quantization"] = quantization.to_dict() | {"from": names[table.dtype]}
    (folder / BASE_FILE).write_text(json.dumps(base, indent=2) + "\n", encoding="utf-8")
