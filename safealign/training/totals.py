"""What a run's training came to: steps, speed, memory, what checkpoints cost; printed, and kept in `training.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safealign.files import write_text
from safealign.training.health import peak_memory

SUMMARY_FILE = "training.json"


@dataclass(frozen=True)
class StageTotals:
    """Of one stage in this process: what an earlier one did before it was interrupted is in `steps` and `tokens` alone.

    `seconds`: of training, evaluations and saves included; `saving_seconds`: of these, checkpoints;
    `communication_share`: of the steps, None where it is not measured (one process, a GPU, DeepSpeed); `first_step_at`:
    by the monotonic clock, None where no step was left to do.
    """

    stage: str
    steps: int
    tokens: int
    seconds: float
    saving_seconds: float
    tokens_per_second: float | None
    communication_share: float | None
    skipped_steps: int
    last: dict[str, float]
    first_step_at: float | None


def stage_totals(trainer: Any, stage: str, seconds: float) -> StageTotals:
    """Of a stage that just ended."""
    logged = [row for row in trainer.state.log_history if "loss" in row]
    evaluated: dict[str, float] = {}
    for row in trainer.state.log_history:
        evaluated |= {name: value for name, value in row.items() if name in _SHOWN}
    return StageTotals(
        stage=stage,
        steps=trainer.state.global_step,
        tokens=int(trainer._total_train_tokens),
        seconds=round(seconds, 3),
        saving_seconds=round(trainer.saving_seconds, 3),
        tokens_per_second=trainer.mean_speed,
        communication_share=trainer.mean_communication,
        skipped_steps=trainer.skipped_steps,
        first_step_at=trainer.first_step_at,
        last={**({"loss": logged[-1]["loss"]} if logged else {}), **evaluated},
    )


_SHOWN = ("eval_loss", "eval_safety/request/auroc", "eval_safety/window/auroc")


def write_totals(
    run_dir: Path, stages: Sequence[StageTotals], resumed: Path | None, seconds_to_first_step: float | None
) -> list[str]:
    """Writes `training.json`, and gives it back in lines for the terminal.

    `seconds_to_first_step`: from the start of the job to its first step; None where no step was left to do.
    """
    seconds, saving = sum(stage.seconds for stage in stages), sum(stage.saving_seconds for stage in stages)
    share = saving / seconds if seconds else 0.0
    summary = {
        "stages": [{k: v for k, v in asdict(stage).items() if k != "first_step_at"} for stage in stages],
        "peak_memory_gb": round(peak_memory() / 1e9, 3),
        "checkpoints": {"seconds": round(saving, 3), "share_of_training": round(share, 4)},
        "resumed_from": None if resumed is None else str(resumed),
        "seconds_to_first_step": None if seconds_to_first_step is None else round(seconds_to_first_step, 3),
    }
    write_text(run_dir / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
    lines = [_line(stage) for stage in stages]
    return [*lines, f"  peak memory {summary['peak_memory_gb']} GB; checkpoints took {share:.1%} of the time"]


def _line(stage: StageTotals) -> str:
    speed = "" if stage.tokens_per_second is None else f" at {stage.tokens_per_second:,.0f} a second"
    skipped = f"; {stage.skipped_steps} steps skipped, not finite" if stage.skipped_steps else ""
    share = stage.communication_share
    waited = "" if share is None else f", {share:.1%} of the steps in communication"
    loss = f"; last loss {stage.last['loss']:.3f}" if "loss" in stage.last else ""
    return f"{stage.stage}: {stage.steps} steps, {stage.tokens:,} tokens{speed}{waited}{loss}{skipped}"
