"""Checkpoints of one run: where they lie, what they carry, and what the run goes on from."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safealign.config.roots import TrainConfig
from safealign.modeling.checkpoint import SafetyCard, read_card
from safealign.training.checkpoints.finding import find, lineage
from safealign.training.checkpoints.identity import Identity
from safealign.training.checkpoints.store import (
    FORMAT_VERSION,
    NOTE_FILE,
    Found,
    Keeping,
    named,
    prune,
    read_note,
    set_aside,
    step_name,
    unfinished,
)
from safealign.training.stages import stages

LOG_FILE, STATE_FILE = "metrics.jsonl", "trainer_state.json"


@dataclass
class StageKeeper:
    """What one stage's trainer needs to write checkpoints; `first_step`: steps of the stages before it."""

    folder: Path
    identity: Identity
    card: SafetyCard
    base_name: str
    keeping: Keeping
    stage: str
    first_step: int = 0
    base: int | None = None
    needed_later: bool = False

    def note(self, trainer: Any, step: int) -> dict[str, Any]:
        """What `checkpoint.json` says of the trainer's present state."""
        state, log = trainer.state, self.folder.parent / LOG_FILE
        done = state.global_step >= state.max_steps
        return {
            "format_version": FORMAT_VERSION,
            "step": step,
            "stage": self.stage,
            "stage_step": state.global_step,
            "stage_done": done,
            "needed_later": done and self.needed_later,
            "calibrated": False,
            "base": self.base,
            "epoch": state.epoch,
            "tokens": int(trainer._total_train_tokens),
            "metrics": _metrics_of(state),
            "log_bytes": log.stat().st_size if log.is_file() else 0,
            "identity": self.identity.to_dict(),
        }


@dataclass
class Keeper:
    """A run's checkpoints.

    `resumed`: the one that it goes on from, None for a run from the start; `before`: the ends of the stages before that
    one's; `started`: when the job began, by the monotonic clock.
    """

    config: TrainConfig
    identity: Identity
    card: SafetyCard
    base_name: str
    say: Callable[[str], None]
    resumed: Found | None = None
    before: list[Found] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def open(
        cls,
        config: TrainConfig,
        identity: Identity,
        card: SafetyCard,
        base_name: str,
        say: Callable[[str], None],
        started: float | None = None,
    ) -> Keeper:
        """Looks for what `config.resume` asks for; raises CheckpointError as `find` does. Changes nothing on disk."""
        folder = Path(config.run_dir) / "checkpoints"
        resumed = find(config.resume, folder, identity, say)
        keeper = cls(config, identity, card, base_name, say, resumed)
        keeper.started = keeper.started if started is None else started
        if resumed is not None:
            keeper.before = lineage(resumed)
            say(f"going on from {resumed.path} (resume=none trains anew)")
        return keeper

    @property
    def finished(self) -> bool:
        """Whether the run was over: head and thresholds are final, and no stage is left to train."""
        return self.resumed is not None and bool(self.resumed.note["calibrated"])

    def nothing_left(self) -> Path | None:
        """The checkpoint that the run's training was over in, so that none was done here; None where some was."""
        found = self.resumed
        last = found is not None and found.note["stage_done"] and found.note["stage"] == stages(self.config)[-1]
        return found.path if found is not None and last else None

    @property
    def folder(self) -> Path:
        """Where the checkpoints lie."""
        return Path(self.config.run_dir) / "checkpoints"

    def clear(self) -> None:
        """Makes the folder ready to go on in: what is not of this run, or lies past the point, is set aside.

        Rank 0 calls it before the first step. Nothing whole is deleted; the log is cut back to the checkpoint's.
        """
        for path in unfinished(self.folder):
            shutil.rmtree(path, ignore_errors=True)
        resumed, here = self.resumed, named(self.folder)
        last = -1 if resumed is None else resumed.step
        strangers = [path for step, path in here.items() if step > last or not self._ours(path)]
        log = Path(self.config.run_dir) / LOG_FILE
        if resumed is None:
            place = set_aside([*strangers, *([log] if log.is_file() else [])], log.parent)
        else:
            place = set_aside(strangers, log.parent)
            if resumed.path.parent.resolve() == self.folder.resolve() and not resumed.note["calibrated"]:
                _cut(log, resumed.note["log_bytes"])
        if place is not None:
            self.say(f"checkpoints and log of another run, or past this point, were moved to {place}")
        for step, path in named(self.folder).items():
            if path.name.endswith(".old"):
                path.rename(self.folder / step_name(step))
        for start in self.before:
            if start.path.parent.resolve() != self.folder.resolve():  # later checkpoints will lean on it here
                copy = self.folder / f"{step_name(start.step)}.tmp"
                shutil.copytree(start.path, copy)
                copy.rename(self.folder / step_name(start.step))

    def _ours(self, path: Path) -> bool:
        note = read_note(path)
        return note is not None and self.identity.difference(note.get("identity", {})) is None

    def start_of(self, stage: str) -> Found | None:
        """The checkpoint that holds this stage's state, or its end where a later stage is being gone on with.

        For the first stage of a run that was over, the run's last: there is nothing else to load.
        """
        if self.finished and stage == stages(self.config)[0]:
            return self.resumed
        for found in [] if self.resumed is None else [self.resumed, *self.before]:
            if found.note["stage"] == stage:
                renamed = found.path.with_name(found.path.name.removesuffix(".old"))
                return Found(renamed if renamed.is_dir() else found.path, found.step, found.note)
        return None

    def of_stage(self, stage: str, first_step: int) -> StageKeeper:
        """For a stage's trainer."""
        trainer = self.config.trainer
        order = stages(self.config)
        return StageKeeper(
            self.folder,
            self.identity,
            self.card,
            self.base_name,
            Keeping(trainer.keep_last, trainer.keep_best),
            stage,
            first_step,
            base=None if stage == order[0] else first_step,
            needed_later=stage != order[-1],
        )

    @property
    def calibrated_card(self) -> SafetyCard | None:
        """The card of a run that was calibrated before it ended, if its thresholds are still those asked for."""
        found = self.resumed
        if found is None or not self.finished:
            return None
        if found.note["identity"]["thresholds"] != self.identity.thresholds:
            return None
        return read_card(found.path)

    def seal(self, folder: Path, step: int) -> None:
        """Adds state and note to the folder that replaces a run's last checkpoint once it is calibrated."""
        last = self.folder / step_name(step)
        note = read_note(last) or {}
        shutil.copyfile(last / STATE_FILE, folder / STATE_FILE)
        note |= {"calibrated": True, "base": None, "identity": self.identity.to_dict()}
        (folder / NOTE_FILE).write_text(json.dumps(note, indent=2, allow_nan=False) + "\n", encoding="utf-8")

    def seal_fitted(self, folder: Path) -> None:
        """Adds the note to the one checkpoint of a run without steps, whose head was fitted."""
        note = {
            "format_version": FORMAT_VERSION,
            "step": 0,
            "stage": stages(self.config)[-1],
            "stage_step": 0,
            "stage_done": True,
            "needed_later": False,
            "calibrated": True,
            "base": None,
            "epoch": 0.0,
            "tokens": 0,
            "metrics": {},
            "log_bytes": 0,
            "identity": self.identity.to_dict(),
        }
        (folder / NOTE_FILE).write_text(json.dumps(note, indent=2, allow_nan=False) + "\n", encoding="utf-8")

    def tidy(self) -> None:
        """Removes what only a later stage would have needed, once there is none."""
        trainer = self.config.trainer
        prune(self.folder, Keeping(trainer.keep_last, trainer.keep_best), finished=True)


def _metrics_of(state: Any) -> dict[str, float]:
    """Finite metrics of the evaluation at this very step."""
    found: dict[str, float] = {}
    for row in state.log_history:
        if row.get("step") == state.global_step:
            found |= {k: float(v) for k, v in row.items() if k.startswith("eval_") and isinstance(v, int | float)}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _cut(log: Path, size: int) -> None:
    """Takes back what was logged after a checkpoint."""
    if log.is_file() and log.stat().st_size > size:
        with log.open("r+b") as stream:
            stream.truncate(size)
