"""Exports a finished run again from its last complete checkpoint."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from safealign.config.roots import ExportConfig
from safealign.errors import CheckpointError
from safealign.model import load
from safealign.modeling.checkpoint import MANIFEST_FILE
from safealign.modeling.exporting import export_model
from safealign.modeling.loading import load_export
from safealign.training.cards import write_card


def reexport(config: ExportConfig) -> Path:
    """Writes `run_dir/export` from a checkpoint, merged or as an adapter, and loads it once.

    Raises CheckpointError when the run has no complete checkpoint, or not the step asked for.
    """
    checkpoint = find_checkpoint(Path(config.run), config.step)
    loaded = load_export(checkpoint, offline=config.offline)
    export = export_model(
        Path(config.run_dir) / "export",
        loaded.lm,
        loaded.tokenizer,
        loaded.parts,
        loaded.card,
        merge=config.merge,
        base_name=str(loaded.base_name),
        extras=partial(write_card, card=loaded.card),
    )
    load(export, offline=config.offline)
    return export


def find_checkpoint(run: Path, step: int | None) -> Path:
    """The checkpoint of `step`, or the newest complete one."""
    found = {
        int(match.group(1)): path
        for path in (run / "checkpoints").glob("step-*")
        if (match := re.fullmatch(r"step-(\d+)", path.name)) and (path / MANIFEST_FILE).is_file()
    }
    if not found:
        raise CheckpointError(
            f"{run} has no complete checkpoint under checkpoints/: is it the folder of a finished run?"
        )
    if step is not None and step not in found:
        raise CheckpointError(f"{run} has no checkpoint of step {step}: there are {', '.join(map(str, sorted(found)))}")
    return found[max(found) if step is None else step]
