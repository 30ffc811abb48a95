"""A run that leaves the language model as it is: head and token head are fitted on its cached states, without a step.

Linear probes of frozen states already hold most of the verdict. The fits are those that joint training starts from
(`warm_start`) and ends with (`token_head`); here nothing moves between them, so that one of each is enough.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from safealign.config.roots import TrainConfig
from safealign.data.rendering import Renderer
from safealign.files import write_text
from safealign.modeling.attach import SafetyParts
from safealign.modeling.checkpoint import restore_safety
from safealign.modeling.feature_cache import FeatureCache
from safealign.modeling.precision import compute_dtype
from safealign.training.checkpoints.keeper import Keeper
from safealign.training.health import peak_memory
from safealign.training.prepare import TrainingData
from safealign.training.run import TrainedModel, attach_from
from safealign.training.stages import FROZEN
from safealign.training.token_head import fit_token_head
from safealign.training.totals import SUMMARY_FILE
from safealign.training.warm_start import warm_start

_TOLD = 1000  # texts between two lines of progress


def fit_frozen(
    config: TrainConfig, model: Any, renderer: Renderer, data: TrainingData, console: Console, keeper: Keeper
) -> TrainedModel:
    """Attaches the safety parts and fits the heads; the model's own weights are only read.

    States come from the feature cache where they are known; of a run that was over the heads are loaded. Raises
    CheckpointError for damaged ones.
    """
    started = time.monotonic()
    parts = attach_from(config, model.eval(), renderer)
    keeper.clear()
    if keeper.finished:
        assert keeper.resumed is not None
        restore_safety(keeper.resumed.path, parts)
    else:
        _fit(config, parts, data, console)
    seconds = time.monotonic() - started
    _write_totals(config, data, seconds, keeper)
    return TrainedModel(model, parts, [], 0, seconds)


def _fit(config: TrainConfig, parts: SafetyParts, data: TrainingData, console: Console) -> None:
    def say(text: str) -> None:
        console.print(text, highlight=False)

    head, cache = config.safety.head, FeatureCache(say=say)
    common: dict[str, Any] = {"autocast": compute_dtype(config.trainer.precision), "cache": cache}
    say(f"head: reading the frozen model's states of {len(data.warm)} requests and {len(data.warm_answers)} answers")
    warm_start(parts, data.warm, data.warm_answers, progress=_progress(say), kind=head.kind, **common)
    if parts.token_head is None:
        return
    say("token head: reading the states of answers' tokens")
    if not fit_token_head(parts, data.warm_answers[::2], **common):
        say("  too few labelled answers: it stays at zero, and schedule=cascade has nothing to go by")


def _progress(say: Callable[[str], None]) -> Callable[[int], None]:
    """Counts texts, and says so after every thousand."""
    done = 0

    def count(n: int) -> None:
        nonlocal done
        if (done + n) // _TOLD > done // _TOLD:
            say(f"  {done + n} texts")
        done += n

    return count


def _write_totals(config: TrainConfig, data: TrainingData, seconds: float, keeper: Keeper) -> None:
    """`training.json`, as of a run with steps."""
    texts = len(data.warm) + len(data.warm_answers)
    stage = {"stage": FROZEN, "steps": 0, "tokens": 0, "texts": texts, "seconds": round(seconds, 3)}
    resumed = None if keeper.resumed is None else str(keeper.resumed.path)
    summary = {"stages": [stage], "peak_memory_gb": round(peak_memory() / 1e9, 3), "resumed_from": resumed}
    write_text(Path(config.run_dir) / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
