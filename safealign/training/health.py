"""What a run notices about itself, as a mixin over TRL's trainers: numbers not finite, speed, memory, waiting."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from safealign.errors import DivergedError
from safealign.training.agreeing import on_any_rank
from safealign.training.communication import Collectives
from safealign.training.uneven import NOBODY

STOP, SKIP = "stop", "skip"
NONFINITE_FILE = "nonfinite.jsonl"
_IN_A_ROW = 10  # steps skipped one after the other: weights or data are broken, and skipping more helps nobody


class HealthMixin:
    """Watches loss and gradient of every step, before the optimiser sees them.

    `on_nonfinite`: `stop` raises DivergedError with the weights as they were, `skip` leaves the step out (its
    gradients are thrown away on every rank). Either way the ids of the batch go to `run_dir/nonfinite.jsonl`.
    """

    on_nonfinite: str = STOP
    run_dir: Path | None = None
    example_ids: Mapping[int, str] = {}
    skipped_steps = 0
    _skipped_in_a_row = 0
    _finite: torch.Tensor | None = None
    _batch: tuple[torch.Tensor, ...] = ()
    _step_started = 0.0
    _busy_seconds = 0.0
    _all_busy_seconds = 0.0
    _tokens_before = 0
    _tokens_here = 0
    _collectives: Collectives | None = None
    _watches = False
    _collective_before = 0.0
    _collective_seconds = 0.0
    _all_collective_seconds = 0.0
    first_step_at: float | None = None

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's, noting whose examples they were and whether the loss is finite."""
        if not self._watches:
            self._watches, self._collectives = True, Collectives.of(model, self.accelerator)  # type: ignore[attr-defined]
        if self._finite is None:
            self._step_started, self._collective_before = time.monotonic(), self._in_collectives
            self.first_step_at = self.first_step_at or self._step_started
        if "safety_example" in inputs:
            self._batch += (inputs["safety_example"],)
        loss = super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        finite = torch.isfinite(loss).all()
        self._finite = finite if self._finite is None else self._finite & finite
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """transformers', and the verdict on the step: it runs once a step, after clipping, before the optimiser."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]
        self._judge(norm)
        self._busy_seconds += time.monotonic() - self._step_started
        self._collective_seconds += self._in_collectives - self._collective_before
        self._batch, self._finite = (), None
        return norm

    def _judge(self, norm: Any) -> None:
        loss_ok = self._finite is None or bool(self._finite)
        gradient_ok = norm is None or bool(torch.isfinite(torch.as_tensor(norm)).all())
        if not on_any_rank(self.accelerator, not (loss_ok and gradient_ok)):  # type: ignore[attr-defined]
            self._skipped_in_a_row = 0
            return
        trainer: Any = self
        what = "loss" if not loss_ok else "gradient"
        self._write_down(what)
        self._skipped_in_a_row += 1
        if self.on_nonfinite == STOP or self._skipped_in_a_row >= _IN_A_ROW:
            raise DivergedError(self._divergence(what))
        self.skipped_steps += 1
        for parameter in trainer.model.parameters():
            parameter.grad = None  # the optimiser passes over weights without a gradient

    def _write_down(self, what: str) -> None:
        """Ids alone, never a text: what is in a batch may be harmful."""
        if self.run_dir is None:
            return
        trainer: Any = self
        numbers = dict.fromkeys(n for examples in self._batch for n in examples.tolist() if n > NOBODY)
        ids = [self.example_ids.get(number, str(number)) for number in numbers]
        row = {"step": trainer.state.global_step + 1, "rank": trainer.args.process_index, "what": what, "ids": ids}
        with (self.run_dir / NONFINITE_FILE).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")

    def _divergence(self, what: str) -> str:
        trainer: Any = self
        times = f", {_IN_A_ROW} steps in a row" if self._skipped_in_a_row >= _IN_A_ROW else ""
        file = (self.run_dir or Path()) / NONFINITE_FILE
        return (
            f"training stopped at step {trainer.state.global_step + 1}: its {what} is NaN or infinite{times}. The ids "
            f"of its batch are in {file}: look at these rows, lower trainer.learning_rate, or leave such steps out "
            "with trainer.on_nonfinite=skip"
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """TRL's; beside the training loss tokens per second (evaluations and saves apart), peak memory, and the share
        of the steps that went to communication, where that is measured.
        """
        if "loss" in logs and self._busy_seconds > 0:
            tokens = int(getattr(self, "_total_train_tokens", 0))
            logs["tokens_per_second"] = round((tokens - self._tokens_before) / self._busy_seconds, 1)
            logs["memory_gb"] = round(peak_memory() / 1e9, 3)
            if self._collectives is not None:
                logs["communication_share"] = round(self._collective_seconds / self._busy_seconds, 4)
            if self.skipped_steps:
                logs["skipped_steps"] = self.skipped_steps
            self._tokens_here += tokens - self._tokens_before
            self._all_busy_seconds += self._busy_seconds
            self._all_collective_seconds += self._collective_seconds
            self._tokens_before, self._busy_seconds, self._collective_seconds = tokens, 0.0, 0.0
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    @property
    def mean_speed(self) -> float | None:
        """Tokens per second over all steps of this process; None before the first log."""
        return round(self._tokens_here / self._all_busy_seconds, 1) if self._all_busy_seconds else None

    @property
    def mean_communication(self) -> float | None:
        """Share of all steps of this process that it was in collectives; None where that is not measured."""
        if self._collectives is None or not self._all_busy_seconds:
            return None
        return round(self._all_collective_seconds / self._all_busy_seconds, 4)

    @property
    def _in_collectives(self) -> float:
        return 0.0 if self._collectives is None else self._collectives.seconds


def peak_memory() -> int:
    """Peak bytes of this process: on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
