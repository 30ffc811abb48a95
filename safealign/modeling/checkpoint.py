"""Writes, verifies and loads the safety artefacts beside a language model or adapter.

`safety.safetensors` holds token, head and standardisation; `safety.json` everything that inference needs to know
and a probe vector with its logit, so that a head which was not restored is noticed. No pickle, no remote code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from safealign.errors import CheckpointError
from safealign.modeling.attach import SafetyParts
from safealign.modeling.safety_token import HeadSettings

FORMAT_VERSION = 2
TENSORS_FILE, CARD_FILE = "safety.safetensors", "safety.json"
_PROBE_TOLERANCE = 1e-4


@dataclass
class SafetyCard:
    """Contents of `safety.json`.

    `head`: layers (fractions of depth) and pool. `window_sees_query`, `placement`, `trigger`, `refusal`: how
    safety rows are laid out and what is said. `decoding`: default options (r1–r3, τ, schedule, dependency).
    `thresholds`: logits for query, window and prefix (null disables). `calibration`: what they promise and for
    which distribution, temperature included. `training`: data digests and licences. `ranker`: what lies in
    `ranker.safetensors`, see `ranking.artefact`. None for a part that the export has not. `frozen`: the language model
    was left as it was, and never learnt to see a safety token.
    """

    head: HeadSettings | None
    placement: str
    window_sees_query: bool
    trigger: str
    refusal: str
    decoding: dict[str, Any] = field(default_factory=dict)
    thresholds: dict[str, float | None] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    ranker: dict[str, Any] | None = None
    frozen: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        head = None if self.head is None else {name: _plain(value) for name, value in vars(self.head).items()}
        return {**self.__dict__, "head": head, "format_version": FORMAT_VERSION}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str) -> SafetyCard:
        """Reads the plain form; raises CheckpointError for another format or a missing key."""
        version = data.get("format_version")
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{where} has format version {version}, this safealign reads {FORMAT_VERSION}: "
                "export the run again with this version"
            )
        try:
            head = None if data["head"] is None else _head(data["head"])
            names = cls.__dataclass_fields__.keys() - {"head", "ranker", "frozen"}
            # Cards of earlier versions say nothing of a ranker or of a frozen model.
            more: dict[str, Any] = {"ranker": data.get("ranker"), "frozen": bool(data.get("frozen", False))}
            return cls(head=head, **more, **{name: data[name] for name in names})
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{where} lacks or garbles a key ({error}): export the run again") from error


def _head(reads: Mapping[str, Any]) -> HeadSettings:
    return HeadSettings(
        tuple(reads["layers"]),
        tuple(reads["pool"]),
        bool(reads["separate_windows"]),
        tuple(reads["token_layers"]),
        tuple(reads["window_pool"]),
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def safety_tensors(parts: SafetyParts) -> dict[str, torch.Tensor]:
    """Token, head and standardisation as CPU tensors; raises CheckpointError for an empty or non-finite one."""
    tensors = _tensors_of(parts)
    found = {name: value.detach().float().cpu().contiguous().clone() for name, value in tensors.items()}
    for name, value in found.items():
        if value.numel() == 0:
            raise CheckpointError(f"refusing to save {name}: it is empty (a sharded tensor that was not gathered?)")
        if not torch.isfinite(value).all():
            raise CheckpointError(f"refusing to save {name}: it holds NaN or infinity; training diverged")
    return found


def save_safety(folder: Path, parts: SafetyParts | None, card: SafetyCard) -> None:
    """Writes `safety.safetensors` and `safety.json` into `folder`; without parts the card alone."""
    data = card.to_dict()
    if parts is not None:
        tensors = safety_tensors(parts)
        save_file(tensors, folder / TENSORS_FILE, metadata={"format": "pt"})
        data |= {"probe": _probe(tensors), "tensors": {n: list(t.shape) for n, t in tensors.items()}}
    (folder / CARD_FILE).write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_card(folder: Path) -> SafetyCard:
    """Reads `safety.json`; raises CheckpointError when `folder` is no export."""
    return SafetyCard.from_dict(_read_json(folder / CARD_FILE, folder), str(folder / CARD_FILE))


def restore_safety(folder: Path, parts: SafetyParts) -> None:
    """Loads token and head into attached modules and checks shapes, dtype, finiteness and the probe's logit."""
    expected = _read_json(folder / CARD_FILE, folder)
    tensors = read_tensors(folder / TENSORS_FILE)
    shapes = {name: list(value.shape) for name, value in tensors.items()}
    if shapes != expected.get("tensors"):
        raise CheckpointError(f"{folder / TENSORS_FILE} does not hold the tensors that {CARD_FILE} names: {shapes}")
    with torch.no_grad():
        _assign(parts, tensors, folder)
    for name, found in _probe(safety_tensors(parts)).items():
        wanted = expected.get("probe", {}).get(name)
        if wanted is None or abs(found - wanted) > _PROBE_TOLERANCE * max(1.0, abs(wanted)):
            raise CheckpointError(
                f"the safety parts in {folder} were not restored: the probe's {name} is {found:.6f}, not {wanted}; "
                "export the run again"
            )


def _assign(parts: SafetyParts, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    for name, target in _tensors_of(parts).items():
        if name not in tensors or tensors[name].shape != target.shape or tensors[name].dtype != torch.float32:
            raise CheckpointError(
                f"{folder / TENSORS_FILE}: {name} is missing or does not fit this model "
                f"(wanted {list(target.shape)} in fp32); is the export complete, and made for this base model?"
            )
        target.copy_(tensors[name].to(target.device))


def _tensors_of(parts: SafetyParts) -> dict[str, torch.Tensor]:
    """The live tensors of token, head and (where there is one) token head, by their names in the file."""
    tensors = {"token.weight": _active(parts.token).weight}
    heads = {"head": _active(parts.head), "token_head": parts.token_head}
    for prefix, head in heads.items():
        if head is not None:
            tensors |= {f"{prefix}.{name}": value for name, value in head.state_dict().items()}
    return tensors


def _active(module: torch.nn.Module) -> Any:
    """The module itself, or the trained copy inside PEFT's `modules_to_save` wrapper."""
    copies = getattr(module, "modules_to_save", None)
    if copies is None:
        return module
    active = getattr(module, "active_adapters", None) or list(copies)
    return copies[active[0]]


def _probe(tensors: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """A fixed vector through each read-out, in fp64: `σ⁻¹(p) = w·((x - mean)/scale) + b`."""
    found = {f"logit {index}": logit for index, logit in enumerate(_probe_logits(tensors, "head"))}
    if "token_head.mean" in tensors:
        found |= {"token head's logit": _probe_logits(tensors, "token_head")[0]}
    token = tensors["token.weight"].double()
    return found | {"token product": float(token @ _probe_vector(token.numel()))}


def _probe_logits(tensors: Mapping[str, torch.Tensor], head: str) -> list[float]:
    mean = tensors[f"{head}.mean"].double()
    standard = (_probe_vector(mean.shape[-1]) - mean) / tensors[f"{head}.scale"].double()
    weight, bias = tensors[f"{head}.linear.weight"].double(), tensors[f"{head}.linear.bias"].double()
    found: list[float] = ((weight * standard).sum(-1) + bias).tolist()
    return found


def _probe_vector(n: int) -> torch.Tensor:
    return torch.sin(torch.arange(1, n + 1, dtype=torch.float64))


def _read_json(path: Path, folder: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is no safealign export: {path.name} is missing") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); export the run again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is no JSON object; export the run again")
    return data


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of an export's file. Raises CheckpointError for one that is missing or torn."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: the export is incomplete") from error
    except Exception as error:  # safetensors raises its own Rust-side class for torn files
        raise CheckpointError(f"{path} is damaged ({error}); export the run again") from error
