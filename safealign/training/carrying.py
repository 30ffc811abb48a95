"""Training that starts from an export takes its safety token and head along, not its weights alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safealign.config.roots import TrainConfig
from safealign.errors import SafealignError
from safealign.modeling.attach import SafetyParts
from safealign.modeling.checkpoint import CARD_FILE, read_card, restore_safety
from safealign.training.checks import head_settings


def carried_export(config: TrainConfig) -> Path | None:
    """`model.path` where it is the folder of an export, of the pretraining stage or of any other run; else None."""
    folder = Path(config.model.path)
    return folder if (folder / CARD_FILE).is_file() else None


def carried_problems(config: TrainConfig) -> list[str]:
    """Why the head of the export that training starts from cannot be taken along."""
    folder = carried_export(config)
    if folder is None:
        return []
    try:
        found, wanted = read_card(folder).head, head_settings(config)
    except (SafealignError, ValueError) as error:
        return [f"model.path: {error}"]
    if found is None or found == wanted:  # an export of a ranker alone has no head
        return []
    return [
        f"model.path={folder} carries a head that reads {found}, but safety.head asks for {wanted}: set safety.head as "
        f"it was there, or take {CARD_FILE} out of a copy of the folder to start with a new head"
    ]


def carry(config: TrainConfig, parts: SafetyParts) -> bool:
    """Loads token and head of the export that training starts from; False where it starts from a bare model.

    Raises CheckpointError for damaged safety artefacts or ones that do not fit the model.
    """
    folder = carried_export(config)
    if folder is None or read_card(folder).head is None:
        return False
    restore_safety(folder, parts)
    return True


def learnt_readouts(parts: SafetyParts) -> list[int]:
    """The read-outs of the head whose weights are not zero: a new head has none."""
    head: Any = parts.head
    return [index for index, weight in enumerate(head.linear.weight) if bool(weight.any())]
