"""Logged metrics to Weights & Biases, under names that its workspace groups into panels."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

STEP = "train/global_step"
# TRL's metrics of the text that carry no section of their own.
_OF_THE_TEXT = ("mean_token_accuracy", "entropy")


def panel(name: str) -> str:
    """The name in W&B, whose part before the first slash is a section of the workspace.

    `metrics.jsonl` keeps the trainer's names: there `eval_safety/request/auroc`, here `request/auroc`. Sections are
    `lm`, `safety`, `request`, `window`, `refresh`, `request_by_category`, `train` and `eval`.
    """
    if name.startswith("eval_safety/request/auroc/"):
        return f"request_by_category/{name.removeprefix('eval_safety/request/auroc/')}"
    for start, mark in (("eval_safety/", ""), ("calibrated/", "calibrated_")):
        kind, _, measure = name.removeprefix(start).partition("/")
        if name.startswith(start) and measure:
            return f"{kind}/{mark}{measure}"
    plain = name.removeprefix("eval_")
    section, _, measure = plain.rpartition("/")
    if section or plain in _OF_THE_TEXT:
        return f"{section or 'lm'}/{'eval_' if name != plain else ''}{measure}"
    return f"eval/{plain}" if name != plain else f"train/{name}"


class WandbPanels(TrainerCallback):
    """Forwards what the trainer logs to a W&B run; only rank 0 has one.

    `first_step`: steps of the stages before, since every trainer counts its own.
    """

    def __init__(self, run: Any, first_step: int = 0) -> None:
        self.run, self.first_step = run, first_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Logs one row at the trainer's step."""
        if state.is_world_process_zero and logs:
            step = self.first_step + state.global_step
            self.run.log({panel(name): value for name, value in logs.items()} | {STEP: step})
