"""Weights of a checkpoint back into the live model: adapter or all of them, then the safety parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from safealign.errors import CheckpointError
from safealign.modeling.attach import SafetyParts
from safealign.modeling.checkpoint import TENSORS_FILE, restore_safety

_SAFETY = "safety_"


def load_weights(folder: Path, model: Any, parts: SafetyParts) -> None:
    """Loads what `write_model` wrote with `merge=False`; raises CheckpointError where a weight is missing or odd.

    `model`: the causal LM, or its PEFT wrapper with the adapter in place.
    """
    state: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name != TENSORS_FILE:
            state |= load_file(path)
    with gathered(model):
        if hasattr(model, "peft_config"):
            _load_adapter(folder, model, state)
        else:
            _load_all(folder, model, state)
        restore_safety(folder, parts)


def _load_adapter(folder: Path, model: Any, state: dict[str, torch.Tensor]) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    live = get_peft_model_state_dict(model)
    safety = {name: value for name, value in live.items() if f".{_SAFETY}" in name}
    _same(folder, {name: value for name, value in live.items() if name not in safety}, state)
    set_peft_model_state_dict(model, {**state, **safety})  # PEFT wants all that it wraps; ours follow from their file


def _load_all(folder: Path, model: Any, state: dict[str, torch.Tensor]) -> None:
    own = {name: value for name, value in model.state_dict().items() if not name.startswith(_SAFETY)}
    # A tied weight is saved once, under one of its names.
    given = {own[name].data_ptr() for name in state if name in own}
    _same(folder, {name: value for name, value in own.items() if name in state or value.data_ptr() not in given}, state)
    model.load_state_dict(state, strict=False)


def _same(folder: Path, wanted: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> None:
    fits = {name for name in wanted if name in state and wanted[name].shape == state[name].shape}
    odd = sorted({*wanted, *state} - fits)
    if odd:
        raise CheckpointError(f"{folder} does not hold this model's weights: {', '.join(odd[:3])} missing or unlike")


@contextmanager
def gathered(model: Any) -> Iterator[None]:
    """While open, the weights that a checkpoint holds are whole, though ZeRO-3 splits them; what rank 0 changes stays.

    All ranks enter. With an adapter that is what is trained, and the safety parts; else everything.
    """
    everything = not hasattr(model, "peft_config")
    split = [
        parameter
        for name, parameter in model.named_parameters()
        if hasattr(parameter, "ds_id") and (everything or parameter.requires_grad or _SAFETY in name)
    ]
    if not split:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(split, modifier_rank=0):
        yield
