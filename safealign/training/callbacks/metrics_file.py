"""Appends every logged metric to `metrics.jsonl`, one JSON object per line."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback


class MetricsFile(TrainerCallback):
    """Writes `{step, epoch, time, …metrics}` on rank 0 and flushes each line; NaN is written as null.

    `note`: more columns of every row, such as the stage that counts these steps.
    """

    def __init__(self, path: Path, note: dict[str, Any] | None = None) -> None:
        self.path, self.note = path, note or {}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Appends one line."""
        if not state.is_world_process_zero or not logs:
            return
        self.write({"step": state.global_step, "epoch": state.epoch, **self.note, **logs})

    def write(self, row: dict[str, Any]) -> None:
        """Appends a row with its time (seconds since the epoch)."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        clean = {key: _plain(value) for key, value in row.items()}
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({**clean, "time": round(time.time(), 3)}, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if hasattr(value, "item") else value
