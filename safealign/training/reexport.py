"""Exports a run from any of its checkpoints."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from safealign.config.roots import ExportConfig
from safealign.model import load
from safealign.modeling.exporting import export_model
from safealign.modeling.loading import load_export
from safealign.training.cards import write_card
from safealign.training.checkpoints.finding import to_export


def reexport(config: ExportConfig) -> Path:
    """Writes `run_dir/export` from a checkpoint, merged or as an adapter, and loads it once.

    Raises CheckpointError when the run has no complete checkpoint, or not the step asked for.
    """
    checkpoint = to_export(Path(config.run), config.checkpoint)
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
