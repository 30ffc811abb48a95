"""Training jobs in processes of their own that are killed at an instant of choice, or find their disk full."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
# Imported once; every job is forked from there.
HEAVY = ["dying_jobs", "safealign.training.evaluating", "trl.trainer.dpo_trainer", "peft", "deepspeed"]
CONTEXT.set_forkserver_preload(HEAVY)

# Where a job can be told to die: module, attribute of it, and whether the call is made first.
INSTANTS: dict[str, tuple[str, str, bool]] = {
    "step": ("transformers.trainer:Trainer", "training_step", False),
    "evaluation": ("safealign.training.safety_loss:Verdicts", "add", False),
    "optimizer written": ("transformers.trainer:Trainer", "_save_optimizer_and_scheduler", True),
    "manifest unwritten": ("safealign.modeling.manifest", "write_manifest", False),
    "unsynced": ("safealign.modeling.manifest", "sync_folder", False),
    "replaced": ("safealign.modeling.manifest", "sync", True),
    "removing": ("safealign.training.checkpoints.store:shutil", "rmtree", False),
    "calibration": ("safealign.training.pipeline", "calibrate_model", False),
    "export": ("safealign.training.pipeline", "export_model", False),
}


def job(argv: Sequence[str], log: str, instant: str | None = None, call: int = 1) -> None:
    """The process: `safealign.train` with these arguments, SIGKILLed at the `call`-th time of `instant`."""
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1), os.dup2(stream, 2)
    from safealign.commands import run_command
    from safealign.train import main

    if instant is not None:
        arm(instant, call)
    os._exit(run_command(main, argv=list(argv)))


def arm(instant: str, call: int) -> None:
    """Kills this process at the `call`-th time of `instant`."""
    import importlib

    name, attribute, after = INSTANTS[instant]
    module, _, inner = name.partition(":")
    place = importlib.import_module(module)
    place = getattr(place, inner) if inner else place
    setattr(place, attribute, _fatal(getattr(place, attribute), call, after))


def _fatal(real: Callable[..., Any], call: int, after: bool) -> Callable[..., Any]:
    calls: list[int] = []

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return dying


NO_ROOM = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some/file")


def fail(place: Any, attribute: str, after: int, error: Exception, patch: Callable[..., None] = setattr) -> None:
    """Lets `place.attribute` work `after` times and then raise `error`."""
    real, calls = getattr(place, attribute), []

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) > after:
            raise error
        return real(*args, **kwargs)

    patch(place, attribute, failing)


def run(
    argv: Sequence[str], log: Path, instant: str | None = None, call: int = 1, kill_after: float | None = None
) -> int:
    """Runs a job to its end, or kills it after so many seconds; its status, negative for a signal."""
    process = CONTEXT.Process(target=job, args=(list(argv), str(log), instant, call))
    process.start()
    process.join(kill_after if kill_after is not None else 300)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def losses(run_dir: Path) -> list[dict[str, Any]]:
    """Logged rows of training and of evaluations within it, apart from what depends on the clock."""
    timed = ("time", "memory_gb", "per_second", "runtime", "communication_share")
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in row.items() if not k.endswith(timed)} for row in rows if "train_runtime" not in row]
