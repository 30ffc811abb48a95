"""Log-probabilities of the reference policy, kept on disk under a hash of everything that they depend on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from safealign.errors import CheckpointError

_VERSION = 1
_NAMES = ("chosen", "rejected")


@dataclass(frozen=True)
class ReferenceCache:
    """A folder of results. `context`: what decides about the numbers beside weights and ids (template, length, …)."""

    folder: Path
    context: Mapping[str, Any]
    say: Callable[[str], None] = print

    def key(self, weights: str, columns: Mapping[str, Sequence[Sequence[int]]]) -> str:
        """Hash of the reference's weights (their digest), the data's ids by column, and the context."""
        digest = hashlib.sha256()
        content = [_VERSION, weights, dict(self.context), {name: list(map(list, ids)) for name, ids in columns.items()}]
        digest.update(json.dumps(content, sort_keys=True).encode())
        return digest.hexdigest()[:40]

    def read(self, key: str, n: int) -> dict[str, torch.Tensor] | None:
        """`chosen` and `rejected`, each fp32 `[n]`; None when there is no file, or, with a word, no sound one."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            return _sound(path, key, n)
        except (SafetensorError, OSError, CheckpointError) as error:
            self.say(f"warning: {path} is torn or was not written for this run ({error}): computing it again")
            return None

    def write(self, key: str, logps: Mapping[str, torch.Tensor]) -> Path:
        """Writes the two tensors under a temporary name and renames it, so that nobody meets half a file."""
        tensors = {name: logps[name].detach().float().cpu().contiguous() for name in _NAMES}
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            temporary.write_bytes(save(tensors, metadata={"key": key, "content": _checksum(tensors)}))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def _sound(path: Path, key: str, n: int) -> dict[str, torch.Tensor]:
    """The tensors of a file; raises CheckpointError for another key, size or content than it says."""
    with safe_open(path, framework="pt") as file:
        note = file.metadata() or {}
        if set(file.keys()) != set(_NAMES) or note.get("key") != key:
            raise CheckpointError("it belongs to something else")
        tensors = {name: file.get_tensor(name) for name in _NAMES}
    if any(value.shape != (n,) or value.dtype != torch.float32 for value in tensors.values()):
        raise CheckpointError(f"it does not hold {n} pairs")
    if note.get("content") != _checksum(tensors):
        raise CheckpointError("its content was changed")
    return tensors


def _checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in _NAMES:
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def reference_digest(model: Any, adapter: str | None) -> str | None:
    """Hash of every weight that the reference computes with: the base model's, and those of `adapter`, if any.

    The safety parts are left out, since with the gate closed no text sees them. None for sharded weights, which no
    single process can hash.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if "safety_" in name or (".lora_" in name and (adapter is None or f".{adapter}." not in name)):
            continue
        if value.numel() == 0:
            return None
        digest.update(f"{name.replace('.base_layer', '')} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
