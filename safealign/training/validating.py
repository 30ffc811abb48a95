"""What `safealign.validate` looks at: config, data, model, one example, time and memory."""

from __future__ import annotations

import time
from typing import Any

import torch
from rich.console import Console

from safealign.config.roots import TrainConfig
from safealign.data.rendering import Renderer
from safealign.errors import SafealignError
from safealign.modeling.precision import compute_dtype
from safealign.training.checks import config_notes, config_problems, model_problems
from safealign.training.collator import SafetyCollator
from safealign.training.pipeline import load_model, sayer
from safealign.training.prepare import TrainingData, arrange, sample
from safealign.training.run import attach_from, planned_steps
from safealign.training.sources import collect_sources
from safealign.training.viewing import show_example


def validate(config: TrainConfig, console: Console) -> list[str]:
    """Every problem of config, data and model; prints notes, an example and an estimate when there is none."""
    problems = config_problems(config)
    for note in config_notes(config):
        console.print(f"note: {note}", highlight=False)
    records, faults = _attempt(lambda: collect_sources(config), ([], []), problems)
    problems += faults
    loaded = _attempt(lambda: load_model(config), None, problems)
    if loaded is not None:
        problems += model_problems(config, loaded[0])
    if problems or loaded is None:
        return problems
    model, renderer = loaded
    data = _attempt(lambda: _arranged(config, model, renderer, records, console), None, problems)
    if data is not None:
        _show(config, model, renderer, data, console)
    return problems


def _attempt(action: Any, fallback: Any, problems: list[str]) -> Any:
    """The action's result; a SafealignError becomes a problem, so that the next check still runs."""
    try:
        return action()
    except SafealignError as error:
        problems.append(str(error))
        return fallback


def _arranged(
    config: TrainConfig, model: Any, renderer: Renderer, records: list[Any], console: Console
) -> TrainingData:
    """The training data with what is sampled already; nothing is sampled, and meaning is not compared."""
    say = sayer(console)
    sampled = sample(config, model, renderer, records, say, only_cached=True)
    return arrange(config, [*records, *sampled.all], renderer, say)


def _show(config: TrainConfig, model: Any, renderer: Renderer, data: TrainingData, console: Console) -> None:
    show_example(data.train, renderer, console)
    steps = planned_steps(config, len(data.train))
    seconds, memory = _one_step(config, model, renderer, data)
    console.print(
        f"estimate: {steps} steps of {config.trainer.batch_size} × {config.trainer.gradient_accumulation} examples, "
        f"{seconds:.1f} s each (one forward and backward pass measured here, without the adapter) ≈ "
        f"{steps * config.trainer.gradient_accumulation * seconds / 60:.0f} min of training; peak memory so far "
        f"{memory:.1f} GB",
        highlight=False,
    )


def _one_step(config: TrainConfig, model: Any, renderer: Renderer, data: TrainingData) -> tuple[float, float]:
    """Seconds of a forward and backward pass over examples of middle length; peak memory of the process in GB."""
    from safealign.layout.collate import SafetyBatch
    from safealign.modeling.features import batch_logits, plan_for

    parts = attach_from(config, model, renderer)
    order = sorted(range(len(data.train)), key=lambda i: data.train[i].n_tokens)
    middle = order[len(order) // 2 :][: config.trainer.batch_size]
    inputs = SafetyCollator(data.train, renderer.tokenizer.pad_token_id or 0)([{"example": i} for i in middle])
    batch = SafetyBatch.pop_from(inputs)
    assert batch is not None
    dtype = compute_dtype(config.trainer.precision)
    started = time.monotonic()
    mixed = torch.autocast(model.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
    with mixed, parts.armed(plan_for(batch.to(model.device))) as capture:
        logits = model(input_ids=inputs["input_ids"].to(model.device), use_cache=False).logits
    (logits.float().logsumexp(-1).mean() + batch_logits(parts, capture, batch.to(model.device)).mean()).backward()
    return time.monotonic() - started, peak_memory()


def peak_memory() -> float:
    """Largest resident memory of this process so far, in GB; the GPU's where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9

