"""A progress line with loss, safety loss, tokens per second and time left."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback


class ProgressLine(TrainerCallback):
    """Replaces the trainer's own bars; off a terminal it prints a plain line at each logging step."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        self.started, self.first_step = 0.0, 0
        self.note = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Opens the bar."""
        self.started, self.first_step = time.monotonic(), state.global_step
        if not (state.is_world_process_zero and self.console.is_terminal):
            return
        columns = (TextColumn("training"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        self.progress = Progress(
            *columns, TextColumn("{task.fields[note]}"), TimeRemainingColumn(), console=self.console
        )
        self.progress.start()
        self.task = self.progress.add_task("train", total=state.max_steps, note="")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advances the bar."""
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=state.global_step, note=self.note)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Shows the newest losses."""
        if not state.is_world_process_zero or not logs:
            return
        if "eval_safety/request/auroc" in logs:
            self._say(_evaluation(state.global_step, logs))
        if "loss" not in logs:
            return
        self.note = self._losses(logs)
        if self.progress is None:
            self._say(f"step {state.global_step}/{state.max_steps}  {self.note}  {self._left(state)}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Closes the bar."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def _losses(self, logs: dict[str, Any]) -> str:
        rate = float(logs.get("tokens_per_second", 0.0))
        return f"loss {float(logs['loss']):.3f}  safety {float(logs.get('safety/loss', 0.0)):.3f}  {rate:.0f} tok/s"

    def _left(self, state: Any) -> str:
        elapsed = time.monotonic() - self.started
        seconds = elapsed / max(state.global_step - self.first_step, 1) * (state.max_steps - state.global_step)
        return f"{int(seconds // 60)}:{int(seconds % 60):02d} left"

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False)


def _evaluation(step: int, logs: dict[str, Any]) -> str:
    parts = [f"step {step}: evaluation"]
    for kind in ("request", "window"):
        value = logs.get(f"eval_safety/{kind}/auroc")
        if value is not None:
            recall = logs.get(f"eval_safety/{kind}/recall@0.01", float("nan"))
            parts.append(f"{kind} AUROC {value:.3f} (recall {recall:.2f} at 1 % false alarms)")
    return "  ".join(parts)
