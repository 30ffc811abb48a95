"""Many ranks, one model: equal weights before training, a whole one on rank 0 after it, and its head handed back.

Under ZeRO-3 a rank holds a slice of each weight, and under any ZeRO stage in bf16 a rounded copy whose fp32 original
lies in the optimiser's slices. What follows training (calibration, export) wants plain, whole, exact weights.
"""

from __future__ import annotations

import gc
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from safealign.config.roots import TrainConfig
from safealign.data.rendering import Renderer
from safealign.errors import CheckpointError
from safealign.modeling.attach import SafetyParts
from safealign.ranks import current
from safealign.training.checkpoints.weights import load_weights


def equalise(model: Any, parts: SafetyParts) -> None:
    """Gives every rank rank 0's trained weights and safety parts, which a rank may have started otherwise.

    Frozen weights come from one file on all ranks, and are sent by DDP and ZeRO-1/2 as well.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    seen = {id(tensor) for tensor in trained}
    current().from_first([*trained, *(t for t in safety_tensors(parts).values() if id(t) not in seen)])


def safety_tensors(parts: SafetyParts) -> dict[str, torch.Tensor]:
    """Weights and buffers of the safety parts by name, those behind PEFT's wrappers included."""
    found: dict[str, torch.Tensor] = {}
    for name, child in parts.lm.named_children():
        if name.startswith("safety_"):
            found |= {f"{name}.{key}": value for key, value in child.named_parameters()}
            found |= {f"{name}.{key}": value for key, value in child.named_buffers()}
    return found


def gather(
    config: TrainConfig, trainer: Any, parts: SafetyParts, renderer: Renderer, saved: Path | None = None
) -> tuple[Any, SafetyParts]:
    """The trained model and its parts as one process would have them; all ranks call it.

    Without DeepSpeed that is the trainer's own. With it rank 0 gets a copy made anew from the gathered fp32 weights;
    the other ranks, which do nothing with it, keep what they have. `saved`: the checkpoint of a training that was over
    before, which has them whole.
    """
    if not trainer.is_deepspeed_enabled:
        return trainer.model, parts
    if saved is not None:
        _forget_deepspeed()
        return _restored(config, renderer, saved) if current().first else (trainer.model, parts)
    state = _whole_state(trainer.model)
    _forget_deepspeed()
    return _rebuilt(config, renderer, state) if current().first else (trainer.model, parts)


def hand_back(parts: SafetyParts, whole: SafetyParts) -> None:
    """Puts rank 0's safety parts (`whole`) into those that every rank trains with, split or not; all ranks call it.

    Windows are fitted again on the whole model, by rank 0, and then evaluated by all.
    """
    if not current().several and parts is whole:
        return
    mine, theirs = safety_tensors(parts), safety_tensors(whole)
    with _gathered(list(mine.values())):
        values = {name: (theirs[name] if current().first else torch.empty_like(mine[name])) for name in mine}
        values = {name: value.detach().to(mine[name].device, mine[name].dtype) for name, value in values.items()}
        current().from_first(values.values())
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.data.copy_(values[name])


def _whole_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every weight (one at a time) and the safety parts' buffers on the CPU; on the ranks but the first, nothing.

    The model's own buffers are tables that it makes for itself, and DeepSpeed has rounded them in bf16.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    first, state = current().first, {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            value = safe_get_full_fp32_param(parameter)
        else:
            with _gathered([parameter]):
                value = parameter.data.clone() if first else None
        if first:
            state[name] = value.detach().cpu()
    if first:
        state |= {name: value.detach().cpu() for name, value in model.named_buffers() if "safety_" in name}
    return state


def _rebuilt(config: TrainConfig, renderer: Renderer, state: dict[str, torch.Tensor]) -> tuple[Any, SafetyParts]:
    """A model made as `fit` makes it, with this state."""
    model, parts = _made_anew(config, renderer)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name in state:
                tensor.data.copy_(state[name])
    missing = [name for name, _ in model.named_parameters() if name not in state]
    if missing:
        raise CheckpointError(f"weights are missing after training: {', '.join(missing[:3])}")
    state.clear()
    gc.collect()
    return model, parts


def _restored(config: TrainConfig, renderer: Renderer, saved: Path) -> tuple[Any, SafetyParts]:
    """The same with a checkpoint's weights."""
    model, parts = _made_anew(config, renderer)
    load_weights(saved, model, parts)
    return model, parts


def _made_anew(config: TrainConfig, renderer: Renderer) -> tuple[Any, SafetyParts]:
    from safealign.training.pipeline import load_model
    from safealign.training.run import adapter_config, attach_from

    model, _ = load_model(config)
    parts = attach_from(config, model, renderer)
    adapter = adapter_config(config, parts)
    if adapter is not None:
        from peft import get_peft_model

        model = get_peft_model(model, adapter)
    return model, parts


def _gathered(tensors: list[torch.Tensor]) -> Any:
    """While open, split weights among the tensors are whole on every rank, and rank 0's change of them stays."""
    split = [tensor for tensor in tensors if hasattr(tensor, "ds_id")]
    if not split:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(split, modifier_rank=0)


def _forget_deepspeed() -> None:
    """Models that are loaded from now on are whole: under ZeRO-3 transformers would split them as they load."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
