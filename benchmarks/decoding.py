"""What does a verdict at every step cost? The engine's schedules beside `hf.generate`, side by side in one run.

    python -m benchmarks.decoding model=outputs/llama_lora/export [batch=1,8,32] [prompt=64,512] [new=128] [repeats=10]

prints a table and writes `run_dir/decoding.json` (every median and spread) and `decoding.png`. A grid may be run in
parts: cases that the file already holds, of the same model and machine, are kept and not run again. Repetitions
are interleaved: each round runs every system once, in an order of its own, and ratios are taken within a round. Answers
never end before `new` tokens. `benign` requests are answered with thresholds off, so that every window is evaluated;
`attacked` ones are refused from the start (θ_query below every logit); `ragged` ones are benign requests of different
lengths, from half of `prompt` on, as a server gets them (the others are all as long as the case says).
`model=random:HIDDENxLAYERS` measures a random Llama of that size, for devices on which a small model would say little.
"""

from __future__ import annotations

import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.decoding_figures import draw
from benchmarks.decoding_models import load_subject
from benchmarks.peak_memory import peak_memory, reset_peak
from safealign.decoding import CachedEngine, CalibratedThresholds, Decoder, DecodingOptions, Prompt, Run
from safealign.evaluation.job import machine
from safealign.files import write_text
from safealign.model import SafeModel

PLAIN = "hf.generate"
SYSTEMS: dict[str, dict[str, Any]] = {
    "engine, no safety": {"safety": False},
    "first": {"schedule": "first"},
    "annealing": {"schedule": "annealing", "floor": 32},
    "periodic(10)": {"schedule": "periodic", "interval": 10},
    "cascade": {"schedule": "cascade", "floor": 32},
    "every, fused": {"schedule": "every"},
    "every, separate": {"schedule": "every", "fused": False},
}
DEFAULTS = {"batch": "1,8,32", "prompt": "64,512", "new": "128", "repeats": "10", "kinds": "benign,attacked"}


@dataclass(frozen=True)
class Case:
    """One cell of the grid."""

    kind: str
    batch: int
    prompt: int
    new: int

    @property
    def name(self) -> str:
        """For the table and the JSON."""
        return f"{self.kind}, batch {self.batch}, prompt {self.prompt}"


@dataclass
class Times:
    """Seconds of one answer batch: to its first token, of each further step; peak memory in bytes.

    An inserted trigger comes with the first step: an attacked answer has fewer steps than tokens.
    """

    first: float
    steps: list[float]
    peak: int

    @property
    def decoding(self) -> float:
        """Seconds of all steps after the first token."""
        return sum(self.steps)


@dataclass
class Measured:
    """All rounds of one system in one case."""

    rounds: list[Times] = field(default_factory=list)

    def figures(self, case: Case, plain: Measured) -> dict[str, float]:
        """Medians, spreads (quartiles) and ratios to `hf.generate` of the same round."""
        slow = [one.decoding / other.decoding for one, other in zip(self.rounds, plain.rounds, strict=True)]
        first = [one.first / other.first for one, other in zip(self.rounds, plain.rounds, strict=True)]
        rates = sorted(case.batch / step for one in self.rounds for step in one.steps)
        return {
            "new_tokens": case.new,
            "rounds": len(self.rounds),
            "ratio": statistics.median(slow),
            "ratio_low": quantile(slow, 0.25),
            "ratio_high": quantile(slow, 0.75),
            "first_ratio": statistics.median(first),
            "first_ms": 1000 * statistics.median(one.first for one in self.rounds),
            "tokens_per_second_p50": quantile(rates, 0.5),
            "tokens_per_second_p95_slowest": quantile(rates, 0.05),
            "peak_mb": max(one.peak for one in self.rounds) / 2**20,
        }


def quantile(values: Sequence[float], share: float) -> float:
    """The value at `share` of the sorted ones."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main(arguments: Sequence[str]) -> None:
    """Runs the grid, writing what is there after every case."""
    given = DEFAULTS | {"run_dir": "outputs/decoding"} | dict(item.split("=", 1) for item in arguments)
    model = load_subject(given["model"])
    console, folder = Console(), Path(given["run_dir"])
    subject = {"machine": machine(), "python": platform.python_version()}
    subject |= {"model": given["model"], "dtype": str(model.hf.dtype), "threads": torch.get_num_threads()}
    report = {**subject, "cases": known_cases(folder / "decoding.json", subject)}
    for case in grid(given):
        if case.name in report["cases"]:
            continue
        measured = measure(model, case, int(given["repeats"]))
        report["cases"][case.name] = {n: m.figures(case, measured[PLAIN]) for n, m in measured.items()}
        show(case, report["cases"][case.name], console)
        write_text(folder / "decoding.json", json.dumps(report, indent=2) + "\n")
        draw(report, folder / "decoding.png")
    console.print(f"written: {folder / 'decoding.json'}, decoding.png", highlight=False)


def known_cases(path: Path, subject: dict[str, Any]) -> dict[str, Any]:
    """Cases measured before on the same model and machine; none where the file is of another or not there."""
    if not path.is_file():
        return {}
    report = json.loads(path.read_text(encoding="utf-8"))
    same = all(report.get(key) == value for key, value in subject.items())
    return dict(report["cases"]) if same else {}


def grid(given: dict[str, str]) -> list[Case]:
    """Every combination that was asked for."""
    numbers = {name: [int(n) for n in given[name].split(",")] for name in ("batch", "prompt")}
    kinds = given["kinds"].split(",")
    return [Case(k, b, p, int(given["new"])) for k in kinds for p in numbers["prompt"] for b in numbers["batch"]]


def measure(model: SafeModel, case: Case, repeats: int) -> dict[str, Measured]:
    """Interleaved rounds of every system after one that warms up."""
    prompts = make_prompts(model, case)
    systems: dict[str, Callable[[], Times]] = {PLAIN: lambda: plain(model, prompts, case)}
    for name, options in SYSTEMS.items():
        systems[name] = lambda chosen=options: ours(model, prompts, case, chosen)  # type: ignore[misc]
    found = {name: Measured() for name in systems}
    order, shuffler = list(systems), random.Random(0)
    for number in range(repeats + 1):
        shuffler.shuffle(order)
        for name in order:
            times = systems[name]()
            if number:
                found[name].rounds.append(times)
    return found


def make_prompts(model: SafeModel, case: Case) -> list[Prompt]:
    """Requests of made-up words, as many tokens as the case says (ragged ones: from half as many), no two alike."""
    words = ("river", "stone", "cloud", "garden", "letter", "window", "music", "winter", "paper", "bridge", "morning")
    made = []
    for row in range(case.batch):
        generator, text = random.Random(row), ""
        wanted = case.prompt - (case.prompt // 2 * row // max(1, case.batch - 1) if case.kind == "ragged" else 0)
        while (prompt := model.prompts([[{"role": "user", "content": text or "Tell"}]])[0]).n_text < wanted:
            text = f"{text} {generator.choice(words)}".strip()
        made.append(prompt)
    return made


def plain(model: SafeModel, prompts: Sequence[Prompt], case: Case) -> Times:
    """`hf.generate`, greedy, left-padded, with a cache of its own choice."""
    longest = max(prompt.n_text for prompt in prompts)
    pads = [longest - prompt.n_text for prompt in prompts]
    ids = torch.tensor([[*([0] * pad), *p.rendered.input_ids] for pad, p in zip(pads, prompts, strict=True)])
    mask = torch.tensor([[*([0] * pad), *([1] * p.n_text)] for pad, p in zip(pads, prompts, strict=True)])
    marks: list[float] = []

    def mark(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        marks.append(now())
        return scores

    settings = {"max_new_tokens": case.new, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    device = model.hf.device
    reset_peak()
    started = now()
    model.hf.generate(ids.to(device), attention_mask=mask.to(device), logits_processor=[mark], **settings)
    marks.append(now())
    return Times(marks[0] - started, [b - a for a, b in zip(marks, marks[1:], strict=False)], peak_memory())


def ours(model: SafeModel, prompts: Sequence[Prompt], case: Case, changes: dict[str, Any]) -> Times:
    """The engine, one step at a time."""
    options = replace(DecodingOptions(), max_new_tokens=case.new, **changes)
    engine = CachedEngine(model.hf, model.parts if options.safety else None, model.rows, gate=options.gate)
    thresholds = model.thresholds or CalibratedThresholds()
    theta = -1e9 if case.kind == "attacked" else None
    thresholds = replace(thresholds, query=theta, window=None, prefix=None)
    decoder = Decoder(engine, options, encoder=model.renderer, eos_ids=(), calibrated=thresholds)
    reset_peak()
    started, marks = now(), []
    run = Run(decoder, len(prompts), max(p.n_text for p in prompts), case.new + 16)
    for prompt in prompts:
        run.submit(prompt, 0)
    while run.busy:
        run.step()
        marks.append(now())
    return Times(marks[0] - started, [b - a for a, b in zip(marks, marks[1:], strict=False)], peak_memory())


def now() -> float:
    """Seconds, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def show(case: Case, figures: dict[str, dict[str, float]], console: Console) -> None:
    """One case's table: times relative to `hf.generate`, tokens a second at the median and in the slowest 5 %."""
    table = Table("system", "time (quartiles)", "first token", "tokens/s", "slowest", "MB")
    table.title, table.title_justify = case.name, "left"
    for name, row in figures.items():
        table.add_row(
            name,
            f"{row['ratio']:.2f} ({row['ratio_low']:.2f}–{row['ratio_high']:.2f})",
            f"{row['first_ratio']:.2f}",
            f"{row['tokens_per_second_p50']:.1f}",
            f"{row['tokens_per_second_p95_slowest']:.1f}",
            f"{row['peak_mb']:.0f}",
        )
    console.print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
