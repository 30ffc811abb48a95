"""What decides about a model's states, as a digest: weights, buffers, config, adapters that are on and their scale."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from safealign.errors import CheckpointError

# What says where a model came from, or how fast it computes, and nothing about what it computes.
_BESIDE = {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache"}
_BESIDE |= {"_attn_implementation", "_attn_implementation_internal", "attn_implementation"}


class ModelIdentity:
    """The digest of a causal LM, computed again only when a weight was written to or an adapter switched.

    A write that goes past autograd (`weight.data.copy_(…)`) is not noticed: take a new identity after one.
    The safety parts are left out: with no safety row in a forward, nothing of them takes part.
    """

    def __init__(self, lm: Any) -> None:
        self.lm = lm
        self._known: tuple[Any, str] | None = None

    def digest(self) -> str:
        """Hex sha256. Raises CheckpointError for weights that are sharded over processes or not loaded."""
        state = (_versions(self.lm), _switches(self.lm))
        if self._known is None or self._known[0] != state:
            self._known = (state, model_digest(self.lm))
        return self._known[1]


def model_digest(lm: Any) -> str:
    """Digest of weights, buffers, config and adapters' switches of a model, without its safety parts."""
    config = {name: value for name, value in lm.config.to_dict().items() if name not in _BESIDE}
    tensors = _tensors(lm)
    for name, value in tensors.items():
        if value.numel() == 0 or value.device.type == "meta":
            raise CheckpointError(f"the weights of {name} are not on this process: read states of a whole model")
    return tensors_digest(tensors, config, _switches(lm))


def guarded_digest(lm: Any) -> str:
    """Digest of a model together with its safety parts: of all that its guarded answers depend on but the options."""
    return tensors_digest({k: v for k, v in lm.state_dict().items() if "safety_" in k}, model_digest(lm))


def tensors_digest(tensors: Mapping[str, torch.Tensor], *before: Any) -> str:
    """Digest of tensors, whatever their order (names, number formats, shapes, every byte), and of plain values."""
    digest = hashlib.sha256(json.dumps(before, sort_keys=True, default=str).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tensors(lm: Any) -> dict[str, torch.Tensor]:
    """By name, those included that only one of the two lists has: rotary frequencies, scales of 4-bit weights."""
    found = {**dict(lm.named_buffers()), **lm.state_dict()}
    return {name: value for name, value in found.items() if "safety_" not in name}


def _versions(lm: Any) -> tuple[tuple[int, int], ...]:
    return tuple((value.data_ptr(), value._version) for value in _tensors(lm).values())


def _switches(lm: Any) -> list[str]:
    """Adapters that take part, by each layer's state: switched off, chosen, merged, and scaled by what."""
    names = ("disable_adapters", "active_adapters", "merged_adapters", "scaling")
    layers = [(name, module) for name, module in lm.named_modules() if hasattr(module, "disable_adapters")]
    return [f"{name} {[getattr(layer, what, None) for what in names]}" for name, layer in layers]
