"""What goes with a checkpoint: losses are logged at each, and evaluations are saved where the best one is kept."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from safealign.errors import ConfigError


class WithSaves(TrainerCallback):
    """Logs at every step that is saved, so that averages of losses never reach across a checkpoint.

    `metric`: the logged name that `trainer.keep_best` looks for; every evaluation is then saved. Raises ConfigError at
    the first step where the evaluation before it does not report that metric.
    """

    def __init__(self, metric: str | None = None) -> None:
        self.metric = metric

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Is the metric one that evaluations report?"""
        reported = {name for row in state.log_history for name in row if name.startswith("eval_")}
        if self.metric is not None and state.global_step == 0 and self.metric not in reported:
            names = ", ".join(sorted(name.removeprefix("eval_") for name in reported)) or "none without validation data"
            raise ConfigError(f"trainer.keep_best: no evaluation reports {self.metric}; there are: {names}")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After transformers' own flow, which decides about evaluating and saving."""
        if self.metric is not None and control.should_evaluate:
            control.should_save = True
        if control.should_save:
            control.should_log = True
