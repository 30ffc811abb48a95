"""SIGTERM, which a scheduler sends before it takes the machine away: save, and end with a status that says so."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback


class Preemption(TrainerCallback):
    """While training, SIGTERM lets the step end, saves, and stops; on several ranks one signal is enough.

    `asked`: whether that happened; the caller then raises PreemptedError.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Listens from now on (Python lets the main thread alone do that)."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Gives the signal back."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Asks for a save and the end if any rank was told to stop."""
        if args.world_size > 1:
            flag = torch.tensor([self.asked], dtype=torch.int32, device=PartialState().device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            self.asked = bool(flag)
        if self.asked:
            control.should_log = control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
