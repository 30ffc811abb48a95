"""The folder `checkpoints/` of a run: which of them are whole and belong to it, which are kept, which are set aside."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safealign.errors import CheckpointError
from safealign.modeling.checkpoint import CARD_FILE
from safealign.modeling.manifest import damage

NOTE_FILE = "checkpoint.json"
FORMAT_VERSION = 1
_NAME = re.compile(r"step-(\d+)(\.old|\.tmp)?")


@dataclass(frozen=True)
class Found:
    """A checkpoint on disk, its `step` over all stages, and its note: what it is a checkpoint of.

    `note`: `stage` and the stage's own `stage_step`; `stage_done` (its training is over), `calibrated` (head and
    thresholds are final); `base`, the step that the stage started from (None: the base model); `identity`, `tokens`,
    `metrics` (an evaluation's at this very step), `log_bytes` (length of metrics.jsonl), `needed_later`.
    """

    path: Path
    step: int
    note: Mapping[str, Any]


def step_name(step: int) -> str:
    """Name of a checkpoint's folder."""
    return f"step-{step}"


def named(folder: Path) -> dict[int, Path]:
    """Every `step-N` of a folder, whole or not, by its step; one that was just being replaced as it was before."""
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("step-*"), reverse=True):  # step-4.old comes before step-4, which wins
        match = _NAME.fullmatch(path.name)
        if match and match[2] != ".tmp" and path.is_dir():
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def unfinished(folder: Path) -> list[Path]:
    """What a run left that died while it saved."""
    return sorted(path for path in folder.glob("step-*.tmp") if path.is_dir())


def read_note(path: Path) -> dict[str, Any] | None:
    """The note of a checkpoint; None for none that this version reads."""
    try:
        note = json.loads((path / NOTE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) and note.get("format_version") == FORMAT_VERSION else None


def whole(path: Path) -> Found:
    """The checkpoint in `path`; raises CheckpointError that says what is wrong with it."""
    problem = damage(path, CARD_FILE, NOTE_FILE, strict=True)
    note = read_note(path)
    match = _NAME.fullmatch(path.name)
    if problem is None and note is None:
        problem = f"{NOTE_FILE} is not of this version"
    if problem is not None or note is None:
        raise CheckpointError(str(problem))
    return Found(path, int(match[1]) if match else int(note["step"]), note)


def newest_first(folder: Path) -> Iterator[tuple[int, Path]]:
    """`(step, path)` of what `named` finds."""
    yield from sorted(named(folder).items(), reverse=True)


def set_aside(paths: list[Path], run_dir: Path) -> Path | None:
    """Moves files and folders of an earlier run of this folder to `earlier-K/`; returns that, None for nothing."""
    if not paths:
        return None
    number = 1 + sum(1 for _ in run_dir.glob("earlier-*"))
    place = run_dir / f"earlier-{number}"
    place.mkdir(parents=True)
    for path in paths:
        os.replace(path, place / path.name)
    return place


@dataclass(frozen=True)
class Keeping:
    """Which checkpoints stay: the `last` newest, and the one with the best value of the metric `best`."""

    last: int
    best: str | None = None

    @property
    def metric(self) -> str | None:
        """The logged name of `best`: `safety/auroc` is the request's, evaluations log under `eval_`."""
        if self.best is None:
            return None
        name = "safety/request/auroc" if self.best == "safety/auroc" else self.best
        return name if name.startswith("eval_") else f"eval_{name}"

    def best_of(self, notes: Mapping[int, Mapping[str, Any]]) -> int | None:
        """The step with the best value among notes by step; the later one of equals, None where none has a value."""
        if self.metric is None:
            return None
        sign = -1.0 if self.metric.endswith("loss") else 1.0
        values = {step: note.get("metrics", {}).get(self.metric) for step, note in notes.items()}
        sound = {s: sign * v for s, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
        return max(sound, key=lambda step: (sound[step], step)) if sound else None


def prune(folder: Path, keeping: Keeping, finished: bool = False) -> None:
    """Removes all but what `keeping` says, what their stages started from, and, unless the run is finished, the ends of
    stages that a later one will start from.
    """
    notes = {step: note for step, path in named(folder).items() if (note := read_note(path)) is not None}
    kept = set(sorted(notes)[-keeping.last :]) | {keeping.best_of(notes)}
    kept |= {step for step, note in notes.items() if note["needed_later"] and not finished}
    for step in sorted(notes, reverse=True):
        if step in kept:
            kept.add(notes[step]["base"])
    for step in notes:
        if step not in kept:
            # Renamed first: half of a removed one must not look like a checkpoint.
            doomed = folder / f"{step_name(step)}.tmp"
            os.replace(named(folder)[step], doomed)
            shutil.rmtree(doomed, ignore_errors=True)
