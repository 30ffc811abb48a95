"""A ranker beside its model: `ranker.safetensors`, and a block of `safety.json` that says what it is.

The block holds the settings, the tensors' shapes and the scores of a fixed list, so that a ranker that was not restored
is noticed. No pickle, no code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from safealign.errors import CheckpointError, ConfigError
from safealign.modeling.checkpoint import CARD_FILE, read_tensors
from safealign.ranking.network import Ranker
from safealign.ranking.settings import RankerSettings

RANKER_FILE, RANKER_VERSION = "ranker.safetensors", 1
_PROBE_TOLERANCE = 1e-4


def ranker_block(ranker: Ranker, sampling: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, Any]:
    """What `safety.json` says of a ranker.

    `sampling`: how the candidates were drawn that it was trained on (`temperature`, `top_p`), which `best_of` takes
    over. `training`: where it came from, and its figures.
    """
    return {
        "version": RANKER_VERSION,
        "settings": asdict(ranker.settings),
        "width": ranker.width,
        "sampling": dict(sampling),
        "training": dict(training),
        "tensors": {name: list(value.shape) for name, value in _tensors(ranker).items()},
        "probe": _probe(ranker),
    }


def save_ranker(folder: Path, ranker: Ranker) -> None:
    """Writes `ranker.safetensors`. Raises CheckpointError for a ranker that holds what is no number."""
    tensors = _tensors(ranker)
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"refusing to save the ranker's {name}: it holds NaN or infinity; training diverged")
    save_file(tensors, folder / RANKER_FILE, metadata={"format": "pt"})


def load_ranker(folder: Path, block: Mapping[str, Any] | None) -> Ranker | None:
    """The ranker of an export in evaluation mode, on the CPU; None where `block` says there is none.

    Raises CheckpointError for one that is missing, damaged, of another version, or was not restored.
    """
    if block is None:
        return None
    where = f"{folder / CARD_FILE}: its ranker"
    if not isinstance(block, Mapping):
        raise CheckpointError(f"{where} is no set of keys but {type(block).__name__}: train it again")
    if block.get("version") != RANKER_VERSION:
        raise CheckpointError(
            f"{where} has version {block.get('version')}, this safealign reads {RANKER_VERSION}: train it again"
        )
    try:
        with torch.random.fork_rng():
            ranker = Ranker(RankerSettings(**block["settings"]), int(block["width"]))
        wanted = {str(name): list(shape) for name, shape in block["tensors"].items()}
        probe = [float(value) for value in block["probe"]]
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"{where} lacks or garbles a key ({error}): train it again") from error
    tensors = read_tensors(folder / RANKER_FILE)
    shapes = {name: list(value.shape) for name, value in tensors.items()}
    own = {name: list(value.shape) for name, value in ranker.state_dict().items()}
    if shapes != wanted or shapes != own or any(value.dtype != torch.float32 for value in tensors.values()):
        raise CheckpointError(f"{folder / RANKER_FILE} does not hold the fp32 tensors that {CARD_FILE} names")
    ranker.load_state_dict(tensors)
    ranker.eval()
    apart = max((abs(a - b) for a, b in zip(_probe(ranker), probe, strict=False)), default=1.0)
    if len(probe) != _PROBED or not apart <= _PROBE_TOLERANCE:
        raise CheckpointError(f"the ranker in {folder} was not restored: it scores a fixed list otherwise than it did")
    return ranker


_PROBED = 5


def _probe(ranker: Ranker) -> list[float]:
    """Scores of a fixed list, in the units in which the ranker reads states."""
    n = (_PROBED + 1) * ranker.width
    waves = torch.sin(torch.arange(1, n + 1, dtype=torch.float32) * 0.7).reshape(_PROBED + 1, ranker.width)
    return ranker.scores(waves.to(ranker.mean.device) * ranker.scale + ranker.mean)


def _tensors(ranker: Ranker) -> dict[str, torch.Tensor]:
    return {name: value.detach().float().cpu().contiguous() for name, value in ranker.state_dict().items()}
