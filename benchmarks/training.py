"""What does the safety objective cost in training? TRL's own trainer and ours on the same batches, in one run.

    python -m benchmarks.training [steps=12] [rounds=3] [overrides of +recipe=llama_lora …]

trains each system for `steps` steps from the same weights on the same examples in the same order, `rounds` times with
the systems interleaved: TRL's SFTTrainer; ours at λ = 0 without safety rows; ours with the request's row alone (K = 0)
and with K = 4 and 8 windows. Prints a table and writes `run_dir/training.json` and `training.png`. Ratios are taken
within a round; the first step of each training, which warms up, is left out.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from benchmarks.peak_memory import peak_memory, reset_peak
from benchmarks.training_figures import draw
from safealign.commands import run_command
from safealign.config.roots import TrainConfig
from safealign.data.rendering import Renderer
from safealign.evaluation.job import machine
from safealign.files import write_text
from safealign.layout import Layout
from safealign.training.collator import LENGTH_KEY
from safealign.training.examples import IGNORED, Example
from safealign.training.memory import release
from safealign.training.order import OrderMixin
from safealign.training.packing_examples import packed
from safealign.training.pipeline import load_model, prepare_data
from safealign.training.prepare import TrainingData
from safealign.training.run import adapter_config, attach_from, build_trainer, common_arguments

PLAIN, BARE, PACKED = "TRL", "ours, λ=0", "K=8, packed"
PROBES = (0, 4, 8)


def _named(k: int) -> str:
    return f"ours, K={k}"


@dataclass
class Measured:
    """All rounds of one system: median seconds of a step, peak bytes, and the language model's loss by step."""

    seconds: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def figures(self, tokens: float, plain: Measured, bare: Measured) -> dict[str, Any]:
        """Ratios within rounds; `tokens` is the number of text tokens of a step."""
        to_plain = [b / a for a, b in zip(self.seconds, plain.seconds, strict=True)]
        to_bare = [a / b for a, b in zip(self.seconds, bare.seconds, strict=True)]
        return {
            "tokens_per_second": tokens / statistics.median(self.seconds),
            "speed_to_trl": statistics.median(to_plain),
            "time_to_bare": statistics.median(to_bare),
            "time_to_bare_range": [min(to_bare), max(to_bare)],
            "peak_mb": max(self.peaks) / 2**20,
            "peak_to_bare": max(self.peaks) / max(bare.peaks),
            "losses": self.losses,
        }


class Watch(TrainerCallback):  # type: ignore[misc]
    """Seconds of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self._started = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stops it once the device is done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._started)


@dataclass(frozen=True)
class Bench:
    """What every system trains on."""

    config: TrainConfig
    renderer: Renderer
    examples: list[Example]

    def system(self, name: str) -> Any:
        """A trainer on freshly loaded weights; the seed makes adapters and order alike."""
        model, _ = load_model(self.config)
        torch.manual_seed(self.config.seed)
        if name == PLAIN:
            return plain_trainer(self, model)
        probes = {BARE: None, PACKED: max(PROBES)} | {_named(k): k for k in PROBES}
        examples = [with_probes(example, probes[name]) for example in self.examples]
        config = self.config
        if name == BARE:
            config = replace(config, safety=replace(config.safety, lambda_cls=0.0))
        if name == PACKED:
            size = config.trainer.batch_size
            examples = [packed(examples[at : at + size]) for at in range(0, len(examples), size)]
            config = replace(config, trainer=replace(config.trainer, batch_size=1))
        parts = attach_from(config, model, self.renderer)
        torch.manual_seed(self.config.seed)
        data = TrainingData(examples, [], [], [], [], [])
        trainer = build_trainer(config, model, self.renderer, data, parts, Console(quiet=True))
        # By text alone: the order must not depend on how many safety rows there are.
        others = trainer.train_dataset.remove_columns(LENGTH_KEY)
        trainer.train_dataset = others.add_column(LENGTH_KEY, lengths(examples))
        return trainer


def main(config: TrainConfig, steps: int, rounds: int) -> None:
    """Runs every system in every round, writing what is there after each round."""
    console, folder = Console(), Path(config.run_dir)
    bench = prepare_bench(config, steps, console)
    names = [PLAIN, BARE, *map(_named, PROBES), PACKED]
    found = {name: Measured() for name in names}
    shuffler = random.Random(config.seed)
    for number in range(rounds):
        for name in shuffler.sample(names, len(names)):
            console.print(f"round {number + 1} of {rounds}: {name}", highlight=False)
            train_once(bench, name, found[name])
        tokens = sum(lengths(bench.examples)) / steps
        rows = {name: m.figures(tokens, found[PLAIN], found[BARE]) for name, m in found.items()}
        report = {"machine": machine(), "model": config.model.path, "steps": steps, "rounds": number + 1}
        report |= {"batch": config.trainer.batch_size, "tokens_of_a_step": tokens, "systems": rows}
        write_text(folder / "training.json", json.dumps(report, indent=2) + "\n")
        draw(report, folder / "training.png")
    show(rows, console)
    console.print(f"written: {folder / 'training.json'}, training.png", highlight=False)


def prepare_bench(config: TrainConfig, steps: int, console: Console) -> Bench:
    """As many of the recipe's examples as `steps` take: those that train the language model, with windows enough."""
    model, renderer = load_model(config)
    data = prepare_data(config, model, renderer, console)
    answered = [e for e in data.train if any(label != IGNORED for label in e.labels)]
    answered.sort(key=lambda example: -len(windows_of(example.layout)))
    wanted = steps * config.trainer.batch_size
    if len(answered) < wanted:
        raise SystemExit(f"{steps} steps take {wanted} answers, the data has {len(answered)}: ask for fewer steps")
    chosen = answered[:wanted]
    random.Random(config.seed).shuffle(chosen)
    return Bench(config, renderer, chosen)


def with_probes(example: Example, k: int | None) -> Example:
    """The example with its request's row and `k` windows, or with no safety row (None); text then sees none."""
    layout = example.layout
    if k is None:
        return replace(example, layout=Layout(layout.n_text, (), (-1,) * layout.n_text, layout.last_query))
    kept = (layout.safety[0], *windows_of(layout)[:k])
    sees = tuple(min(version, 0) for version in layout.sees)
    return replace(example, layout=replace(layout, safety=kept, sees=sees))


def windows_of(layout: Layout) -> tuple[Any, ...]:
    """All safety rows but the request's."""
    return layout.safety[1:]


class InOurOrder(OrderMixin, SFTTrainer):  # type: ignore[misc]
    """TRL's trainer on the same batches as ours."""


def plain_trainer(bench: Bench, model: Any) -> SFTTrainer:
    """TRL's own trainer and collator, with the same arguments and the same adapter."""
    rows = {
        "input_ids": [list(example.input_ids) for example in bench.examples],
        "labels": [list(example.labels) for example in bench.examples],
        LENGTH_KEY: lengths(bench.examples),
    }
    common = common_arguments(bench.config, len(bench.examples), False)
    parts = attach_from(bench.config, model, bench.renderer)
    peft = adapter_config(bench.config, parts)
    peft.modules_to_save = None
    parts.detach()
    trainer = InOurOrder(
        model=model,
        args=SFTConfig(**common, dataset_kwargs={"skip_prepare_dataset": True}),
        train_dataset=Dataset.from_dict(rows),
        processing_class=bench.renderer.tokenizer,
        peft_config=peft,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def lengths(examples: Sequence[Example]) -> list[int]:
    """Text tokens of each example."""
    return [len(example.input_ids) for example in examples]


def train_once(bench: Bench, name: str, into: Measured) -> None:
    """One training of one system."""
    trainer, watch = bench.system(name), Watch()
    trainer.add_callback(watch)
    reset_peak()
    trainer.train()
    into.seconds.append(statistics.median(watch.seconds[1:]))
    into.peaks.append(peak_memory())
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    # TRL's logged loss is the whole objective; what is compared is the language model's part.
    weight = 0.0 if name in (PLAIN, BARE) else bench.config.safety.lambda_cls
    into.losses = [entry["loss"] - weight * entry.get("safety/loss", 0.0) for entry in entries]
    del trainer
    release()


def show(rows: dict[str, dict[str, Any]], console: Console) -> None:
    """The table: tokens a second, and what the safety rows cost."""
    table = Table("system", "tok/s", "/ TRL", "step / λ=0", "MB", "/ λ=0", "loss")
    for name, row in rows.items():
        low, high = row["time_to_bare_range"]
        step = f"{row['time_to_bare']:.2f} ({low:.2f}–{high:.2f})"
        memory = (f"{row['peak_mb']:.0f}", f"{row['peak_to_bare']:.2f}")
        speed = (f"{row['tokens_per_second']:.0f}", f"{row['speed_to_trl']:.2f}")
        table.add_row(name, *speed, step, *memory, f"{row['losses'][-1]:.4f}")
    console.print(table)


def taken(arguments: list[str], name: str, default: int) -> int:
    """Takes `name=N` out of the arguments."""
    found = [argument for argument in arguments if argument.startswith(f"{name}=")]
    for argument in found:
        arguments.remove(argument)
    return int(found[-1].split("=")[1]) if found else default


if __name__ == "__main__":
    typed = sys.argv[1:]
    steps, rounds = taken(typed, "steps", 12), taken(typed, "rounds", 3)
    fixed = [f"trainer.max_steps={steps}", "trainer.logging_steps=1", f"safety.windows.per_answer={max(PROBES)}"]
    fixed += ["safety.gate.closed_share=0", "safety.recovery_share=0"]
    arguments = ["+recipe=llama_lora", "run_dir=outputs/training", *fixed, *typed]
    sys.exit(run_command(partial(main, steps=steps, rounds=rounds), argv=arguments))
