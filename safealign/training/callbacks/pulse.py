"""Says which rank holds the others up when no step ends for a long time."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from safealign.files import write_text

# A rank whose main thread is in one of these waits for others; one that is elsewhere keeps them waiting.
_WAITING = ("/torch/distributed/", "/torch/autograd/")


class Pulse(TrainerCallback):
    """A thread on each rank leaves a sign of life in `folder`: its step, and what its main thread is doing.

    When no step of rank 0 has ended for `timeout` seconds, it hands `say` one sentence that names the rank that keeps
    the others waiting: one without a sign of life, else one that is not itself waiting. It reports and ends nothing;
    that is for the process group's own timeout. `apart`: seconds between signs.
    """

    def __init__(self, folder: Path, timeout: float, say: Callable[[str], None], apart: float = 5.0) -> None:
        self.folder, self.timeout, self.say, self.apart = folder, timeout, say, apart
        self.step, self.ended, self.done = 0, time.monotonic(), threading.Event()
        self._main = threading.get_ident()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """From now on the threads watch."""
        self._main, self.done = threading.get_ident(), threading.Event()
        self._come_on(state.global_step)
        threading.Thread(target=self._run, args=(args.process_index, args.world_size), daemon=True).start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """It goes on."""
        self._come_on(state.global_step)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """It goes on."""
        self._come_on(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Nobody watches any more."""
        self.done.set()
        self._file(args.process_index).unlink(missing_ok=True)

    def _come_on(self, step: int) -> None:
        self.step, self.ended = step, time.monotonic()

    def _run(self, rank: int, world: int) -> None:
        done, reported = self.done, 0.0
        while not done.wait(min(self.apart, self.timeout / 4)):
            if world > 1:
                self._sign(rank)
            silent = time.monotonic() - self.ended
            if rank == 0 and silent >= self.timeout and reported != self.ended:
                reported = self.ended
                self.say(self._report(world, silent))
        self._file(rank).unlink(missing_ok=True)

    def _sign(self, rank: int) -> None:
        frame, files, where = sys._current_frames().get(self._main), [], ""
        while frame is not None:
            files.append(frame.f_code.co_filename)
            where = where or f"{Path(files[0]).name}:{frame.f_lineno} {frame.f_code.co_name}"
            frame = frame.f_back
        waiting = any(part in file for part in _WAITING for file in files)
        sign = {"step": self.step, "time": time.time(), "where": where, "waiting": waiting}
        write_text(self._file(rank), json.dumps(sign))

    def _file(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.json"

    def _report(self, world: int, silent: float) -> str:
        signs = {rank: self._read(rank) for rank in range(world)} if world > 1 else {}
        now = time.time()
        dead = [rank for rank, sign in signs.items() if now - sign["time"] > 4 * self.apart]
        busy = [rank for rank, sign in signs.items() if not sign["waiting"]]
        text = f"warning: no step ended for {silent:.0f} s (trainer.stall_timeout)"
        for rank in dead or busy or signs:
            sign = signs[rank]
            state = f"gave no sign of life for {now - sign['time']:.0f} s" if rank in dead else f"is in {sign['where']}"
            text += f"; rank {rank} {state}, at step {sign['step']}"
        return f"{text}: look at that rank's log and machine" if signs else text

    def _read(self, rank: int) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._file(rank).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {"step": "?", "time": 0.0, "where": "?", "waiting": False}
        return found
