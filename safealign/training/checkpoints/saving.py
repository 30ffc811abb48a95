"""Saving and loading as a mixin over TRL's trainers, through transformers' own hooks.

transformers writes optimizer, scheduler, random states and its own state; the weights are written as an export is, so
that `safealign.load` and `safealign.export` read any checkpoint. A checkpoint gets its name when all of it is on disk.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from safealign.errors import CheckpointError
from safealign.modeling.attach import SafetyParts
from safealign.modeling.exporting import write_model
from safealign.modeling.manifest import publish
from safealign.training.agreeing import on_any_rank
from safealign.training.checkpoints.full_disk import full_disk
from safealign.training.checkpoints.store import NOTE_FILE, named, prune, step_name
from safealign.training.checkpoints.weights import gathered, load_weights

if TYPE_CHECKING:
    from safealign.training.checkpoints.keeper import StageKeeper


class CheckpointMixin:
    """Checkpoints of a stage, as `keeper` says; without one the trainer saves nothing of its own accord."""

    keeper: StageKeeper | None = None
    parts: SafetyParts
    saving_seconds = 0.0
    _saving_to: Path | None = None

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the card comes with the export."""

    def _get_output_dir(self, trial: Any) -> str:
        if self._saving_to is not None:
            return str(self._saving_to)
        folder: str = super()._get_output_dir(trial)  # type: ignore[misc]
        return folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """transformers' own, into a folder with a temporary name, which is renamed when it is whole on disk.

        Raises CheckpointError on every rank where it could not be written; what was there before stays as it is.
        """
        if self.keeper is None:
            return
        trainer: Any = self
        started = time.monotonic()
        step = self.keeper.first_step + trainer.state.global_step
        self._saving_to = self.keeper.folder / f"{step_name(step)}.tmp"
        try:
            if trainer.args.should_save:
                shutil.rmtree(self._saving_to, ignore_errors=True)
            trainer.accelerator.wait_for_everyone()
            self._attempt(lambda: super(CheckpointMixin, self)._save_checkpoint(model, trial))  # type: ignore[misc]
            self._attempt(lambda: self._finish_checkpoint(step) if trainer.args.should_save else None)
        finally:
            self._saving_to = None
        self.saving_seconds += time.monotonic() - started

    def _finish_checkpoint(self, step: int) -> None:
        """Rank 0's part: the note, manifest and name, when every rank has written its own files."""
        assert self.keeper is not None and self._saving_to is not None
        (written,) = self._saving_to.glob("checkpoint-*")
        for script in written.glob("*.py"):  # DeepSpeed's tools for other uses: a checkpoint holds data alone
            script.unlink()
        note = self.keeper.note(self, step)
        (written / NOTE_FILE).write_text(json.dumps(note, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        publish(written, self.keeper.folder / step_name(step))
        shutil.rmtree(self._saving_to, ignore_errors=True)
        prune(self.keeper.folder, self.keeper.keeping)

    def _attempt(self, write: Callable[[], None]) -> None:
        """Runs a part of a save; if it fails on any rank, all ranks remove what there is and raise."""
        problem = None
        try:
            write()
        except CheckpointError as error:
            problem = str(error)
        except (OSError, RuntimeError, SafetensorError) as error:
            problem = full_disk(error) or f"{type(error).__name__}: {error}"
        trainer: Any = self
        if not on_any_rank(trainer.accelerator, problem is not None):
            return
        if trainer.args.should_save and self._saving_to is not None:
            shutil.rmtree(self._saving_to, ignore_errors=True)
        raise CheckpointError(self._unwritten(problem or "another rank says why"))

    def _unwritten(self, problem: str) -> str:
        assert self.keeper is not None
        trainer: Any = self
        kept = named(self.keeper.folder)
        last = f"the last good checkpoint is {kept[max(kept)]}" if kept else "there is no checkpoint yet"
        name = step_name(self.keeper.first_step + trainer.state.global_step)
        return (
            f"training stopped: {self.keeper.folder / name} could not be written ({problem}); {last}. "
            "Mend that and run the same command again: it goes on from there"
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Weights, tokenizer and safety parts as an export has them; all ranks call it, rank 0 writes."""
        trainer: Any = self
        with gathered(trainer.model):
            if trainer.args.should_save:
                folder = Path(output_dir or trainer.args.output_dir)
                folder.mkdir(parents=True, exist_ok=True)
                self._write_weights(folder)

    def _write_weights(self, folder: Path) -> None:
        if self.keeper is None:
            return
        trainer: Any = self
        write_model(
            folder,
            trainer.model,
            trainer.processing_class,
            self.parts,
            self.keeper.card,
            merge=False,
            base_name=self.keeper.base_name,
            base_digest=self.keeper.identity.model,
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Adapter (or all weights) and safety parts; transformers loads the rest of the folder."""
        trainer: Any = self
        load_weights(Path(resume_from_checkpoint), trainer.model, self.parts)
