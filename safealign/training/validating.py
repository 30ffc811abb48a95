"""What `safealign.validate` looks at: config, data, model, one example, time and memory."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console

from safealign.config.roots import TrainConfig
from safealign.data.rendering import Renderer
from safealign.errors import SafealignError
from safealign.layout.collate import SafetyBatch
from safealign.modeling.attach import SafetyParts
from safealign.modeling.features import batch_logits, plan_for
from safealign.modeling.precision import compute_dtype
from safealign.training.carrying import carried_problems
from safealign.training.checks import config_notes, config_problems, model_problems
from safealign.training.collator import EXAMPLE_KEY, SafetyCollator
from safealign.training.examples import IGNORED
from safealign.training.pair_examples import PairCollator
from safealign.training.pipeline import load_model, sayer
from safealign.training.prepare import TrainingData, arrange
from safealign.training.preparing_pairs import collect_preferences
from safealign.training.run import adapter_config, attach_from, planned_steps, require_examples
from safealign.training.safety_loss import compact_labels
from safealign.training.self_made import sample
from safealign.training.sources import collect_sources
from safealign.training.stages import DPO, SFT, of_stage, stages
from safealign.training.viewing import show_example


def validate(config: TrainConfig, console: Console) -> list[str]:
    """Every problem of config, data and model; prints notes, an example and an estimate when there is none."""
    problems = [*config_problems(config), *carried_problems(config)]
    for note in config_notes(config):
        console.print(f"note: {note}", highlight=False)
    records, faults = attempt(lambda: collect_sources(config, sayer(console)), ([], []), problems)
    problems += faults
    if DPO in stages(config):
        problems += attempt(lambda: collect_preferences(config)[1], [], problems)
    loaded = attempt(lambda: load_model(config), None, problems)
    if loaded is not None:
        problems += model_problems(config, loaded[0])
    if problems or loaded is None:
        return problems
    model, renderer = loaded
    data = attempt(lambda: _arranged(config, model, renderer, records, console), None, problems)
    if data is not None:
        attempt(lambda: require_examples(config, data), None, problems)
    if data is not None and not problems:
        _show(config, model, renderer, data, console)
    return problems


def attempt(action: Any, fallback: Any, problems: list[str]) -> Any:
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
    return arrange(config, sampled.joined_to(records), renderer, say)


def _show(config: TrainConfig, model: Any, renderer: Renderer, data: TrainingData, console: Console) -> None:
    """One example, and what each stage will take."""
    if config.safety.frozen:
        show_example(data.warm_answers or data.warm, renderer, console)
        n = len(data.warm) + len(data.warm_answers)
        console.print(f"frozen: nothing is trained; the states of {n} texts are read once and kept in the cache")
        return
    show_example(data.train or [pair.chosen for pair in data.pairs.train], renderer, console)
    rows: dict[str, Any] = {stage: data.pairs.train if stage == DPO else data.train for stage in stages(config)}
    show_estimates(config, model, renderer, rows, {}, console)


def show_estimates(
    config: TrainConfig,
    model: Any,
    renderer: Renderer,
    rows: Mapping[str, Sequence[Any]],
    counts: Mapping[str, int],
    console: Console,
) -> None:
    """What each stage will take; a step is timed on an adapter that is thrown away.

    `rows`: examples or pairs of every stage, or some of them, where `counts` says how many there are.
    """
    pad = renderer.tokenizer.pad_token_id or 0
    parts = attach_from(config, model, renderer)
    adapter = adapter_config(config, parts)
    if adapter is not None:
        from peft import get_peft_model

        model = get_peft_model(model, adapter)
    for stage, own_rows in rows.items():
        if not own_rows:
            console.print(f"{stage} estimate: none, since no row was found")
            continue
        own = of_stage(config, stage)
        collate = PairCollator(own_rows, pad) if stage == DPO else SafetyCollator(own_rows, pad)
        seconds = _one_step(own, model, parts, [row.n_tokens for row in own_rows], collate)
        console.print(_estimate(own, stage, counts.get(stage, len(own_rows)), seconds), highlight=False)


def _estimate(config: TrainConfig, stage: str, n: int, seconds: float) -> str:
    """What a stage on `n` examples will take, at `seconds` a forward and backward pass."""
    steps, trainer = planned_steps(config, n), config.trainer
    what = {DPO: "pairs", SFT: "examples"}.get(stage, "rows")
    minutes = steps * trainer.gradient_accumulation * seconds / 60
    return (
        f"{stage} estimate: {steps} steps of {trainer.batch_size} × {trainer.gradient_accumulation} {what}, "
        f"{seconds:.1f} s each (forward and backward passes measured here) ≈ {minutes:.1f} min of training; peak "
        f"memory so far {peak_memory():.1f} GB"
    )


def _one_step(config: TrainConfig, model: Any, parts: SafetyParts, sizes: list[int], collate: Any) -> float:
    """Seconds of a forward and backward pass as training makes them.

    A short, a middle and a long batch after one that warms up, since training takes examples of one length together.
    """
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    size, last = config.trainer.batch_size, len(order) - 1
    starts = [max(0, min(round(share * last), len(order) - size)) for share in (0.5, 0.1, 0.5, 0.9)]
    seconds = [_pass(config, model, parts, collate, order[start : start + size]) for start in starts]
    return sum(seconds[1:]) / 3


def _pass(config: TrainConfig, model: Any, parts: SafetyParts, collate: Any, chosen: list[int]) -> float:
    """Seconds of one forward and backward pass; completion positions alone are scored, as in training."""
    inputs = collate([{EXAMPLE_KEY: i} for i in chosen])
    found = SafetyBatch.pop_from(inputs)
    assert found is not None
    batch, device = found.to(model.device), model.device
    labels = inputs.get("labels")
    if labels is None:
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORED)
    compact, targets = compact_labels(labels.to(device))
    dtype = compute_dtype(config.trainer.precision)
    started = time.monotonic()
    mixed = torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
    with mixed, parts.armed(plan_for(batch, compact)) as capture:
        logits = model(input_ids=inputs["input_ids"].to(device), use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.float()[0], targets[0], ignore_index=IGNORED, reduction="sum")
    (loss + batch_logits(parts, capture, batch).mean()).backward()
    return time.monotonic() - started


def peak_memory() -> float:
    """Largest resident memory of this process so far, in GB; the GPU's where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9

