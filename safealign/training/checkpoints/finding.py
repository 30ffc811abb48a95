"""Where a run goes on: the newest checkpoint that is whole and its own, and why others are passed over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from safealign.errors import CheckpointError
from safealign.modeling.checkpoint import CARD_FILE
from safealign.modeling.manifest import damage
from safealign.training.checkpoints.identity import Identity
from safealign.training.checkpoints.store import Found, named, newest_first, step_name, unfinished, whole

AUTO, NONE = "auto", "none"
Say = Callable[[str], None]


def find(resume: str, folder: Path, identity: Identity, say: Say) -> Found | None:
    """The checkpoint that `resume` asks for: `auto` (the newest of `folder` that fits), `none`, or a path.

    Raises CheckpointError for a path that cannot be gone on from, and where the run was made by another number of
    processes or another ZeRO stage. Checkpoints that `auto` passes over are told to `say`, each with its reason.
    """
    if resume == NONE:
        return None
    if resume != AUTO:
        return _given(Path(resume), identity)
    for path in unfinished(folder):
        say(f"warning: {path} is skipped: it was not finished when the run ended")
    for _, path in newest_first(folder):
        try:
            found = fitting(path, identity)
        except CheckpointError as error:
            say(f"warning: {path} is skipped: {error}")
            continue
        _same_split(found, identity)
        return found
    return None


def fitting(path: Path, identity: Identity) -> Found:
    """The checkpoint in `path`, whole, of this run, with what its stage started from; CheckpointError otherwise."""
    found = whole(path)
    apart = identity.difference(found.note.get("identity", {}))
    if apart is not None:
        raise CheckpointError(apart)
    lineage(found)
    return found


def lineage(found: Found) -> list[Found]:
    """The ends of the stages before a checkpoint's own, newest first; CheckpointError where one is of no use."""
    base = found.note["base"]
    if base is None:
        return []
    path = named(found.path.parent).get(base)
    if path is None:
        raise CheckpointError(f"its stage started from {step_name(base)}, which is not there")
    try:
        start = whole(path)
    except CheckpointError as error:
        raise CheckpointError(f"its stage started from {step_name(base)}, which is of no use: {error}") from error
    return [start, *lineage(start)]


def to_export(run: Path, wanted: str | None) -> Path:
    """The folder of a run's checkpoint: `step-N` (or N), or None for the newest.

    Raises CheckpointError where there is no such one, or it is damaged; the newest passes over damaged ones.
    """
    folder = run / "checkpoints"
    there = named(folder)
    if not there:
        raise CheckpointError(
            f"{run} has no complete checkpoint under checkpoints/: is it the folder of a training run?"
        )
    if wanted is None:
        return _newest_whole(folder, run)
    name = wanted.removeprefix("step-")
    if not name.isdigit() or int(name) not in there:
        raise CheckpointError(f"{run} has no checkpoint {wanted}: there are {_names(sorted(there))}")
    path = there[int(name)]
    problem = damage(path, CARD_FILE)
    if problem is not None:
        raise CheckpointError(f"{path} cannot be exported: {problem}")
    return path


def _newest_whole(folder: Path, run: Path) -> Path:
    reasons = []
    for step, path in newest_first(folder):
        problem = damage(path, CARD_FILE)
        if problem is None:
            return path
        reasons.append(f"{step_name(step)}: {problem}")
    raise CheckpointError(f"{run} has no complete checkpoint under checkpoints/ ({'; '.join(reasons)})")


def _given(path: Path, identity: Identity) -> Found:
    if not path.is_dir():
        raise CheckpointError(f"resume={path}: there is no such folder; give one like RUN_DIR/checkpoints/step-100")
    try:
        found = fitting(path, identity)
    except CheckpointError as error:
        raise CheckpointError(f"resume={path}: cannot go on from it: {error}") from error
    _same_split(found, identity)
    return found


def _same_split(found: Found, identity: Identity) -> None:
    """Raises CheckpointError where the optimiser's state is split over other ranks, or by another ZeRO stage."""
    theirs = found.note["identity"]
    world, setting = theirs["world"], identity.split_difference(theirs)
    if world != identity.world:
        how = (
            f"was written by {world} process(es), and this run has {identity.world}: batches and random states are "
            f"split otherwise. Start it with {world}"
        )
    elif setting is not None:
        how = (
            f"was written with {setting[0]}, and this run has {setting[1]}: weights and optimiser state are split "
            "otherwise. Start it with the former"
        )
    else:
        return
    raise CheckpointError(
        f"{found.path} {how}, train anew with resume=none, or take the weights as they are: "
        f"python -m safealign.export run={found.path.parent.parent} checkpoint={found.path.name}"
    )


def _names(steps: Sequence[int]) -> str:
    return ", ".join(step_name(step) for step in steps)
