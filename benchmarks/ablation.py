"""What does each choice of the recipe buy? Short joint trainings that differ in one setting.

`python -m benchmarks.ablation [rows="NAME,NAME"] [overrides of +recipe=llama_lora …]` prints a table and writes it to
`RUN_DIR/ablation.json` after every row, so that a run cut short keeps what it has: rows that the file holds, of the
same overrides, are not trained again. By default each training is a part of the recipe's (`REDUCED`): rows are to be
compared with the first ones, which differ in the seed alone, not with the published table.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.request_figures import request_figures
from safealign.commands import run_command
from safealign.config.composing import compose
from safealign.config.roots import TrainConfig
from safealign.data.records import Record
from safealign.errors import ConfigError
from safealign.evaluation.job import machine
from safealign.evaluation.sets import load_set
from safealign.files import write_text
from safealign.judges.encoder import SentenceEncoder
from safealign.model import SafeModel
from safealign.modeling.exporting import merged
from safealign.modeling.precision import serving_dtype, weights_as
from safealign.training.memory import release
from safealign.training.pipeline import load_model, safety_card
from safealign.training.prepare import TrainingData, prepare
from safealign.training.run import TrainedModel, fit

REDUCED = ("data.mix.limit=600", "data.warm_answers=160", "trainer.max_steps=24")
SETTINGS: dict[str, tuple[str, ...]] = {
    "the recipe's": (),
    "the recipe's (seed 1)": ("seed=1",),
    "the recipe's (seed 2)": ("seed=2",),
    "λ 0": ("safety.lambda_cls=0",),
    "λ 0.01": ("safety.lambda_cls=0.01",),
    "λ 0.1": ("safety.lambda_cls=0.1",),
    "λ 0.1 (seed 1)": ("safety.lambda_cls=0.1", "seed=1"),
    "λ 0.1 (seed 2)": ("safety.lambda_cls=0.1", "seed=2"),
    "λ 0.3": ("safety.lambda_cls=0.3",),
    "depths 0.4 0.5 0.6": ("safety.head.layers=[0.4,0.5,0.6]",),
    "gate closed": ("safety.gate.closed_share=1.0",),
    "no windows": ("safety.windows.per_answer=0",),
    "no warm start": ("safety.warm_start=false",),
    "one read-out for all": ("safety.head.separate_windows=false", "safety.head.window_pool=null"),
    "windows read all pools": ("safety.head.window_pool=null",),
    "safety token first": ("safety.placement=prepend",),
    "lr × 3": ("trainer.learning_rate=6e-4",),
    "head lr × 10": ("trainer.head_learning_rate=1e-3",),
    "twice the steps": ("trainer.max_steps=48",),
    "last layer's row alone": (
        "safety.head.layers=[1.0]",
        "safety.head.pool=[row]",
        "safety.head.window_pool=null",
    ),
    "windows not refitted": ("safety.head.refit=false",),
    "windows see the query": ("safety.windows.sees_query=true",),
    "lr ÷ 3": ("trainer.learning_rate=7e-5",),
    "token from the role's": ("safety.init=assistant_role",),
}
COLUMNS = {
    "eval_lm/loss": "LM loss",
    "eval_safety/loss": "safety loss",
    "benign": "vs benign",
    "over_refusal": "vs over-refusal",
    "pairs": "pairs",
    "missed": "missed at θ",
    "eval_safety/window/auroc": "windows",
    "minutes": "min",
}


class Remembered:
    """A sentence encoder that encodes each text once, since every setting checks the same prompts for leaks."""

    def __init__(self, encode: Callable[[list[str]], torch.Tensor]) -> None:
        self.encode, self.known = encode, dict[str, torch.Tensor]()

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings `[N, D]` in the order given."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            self.known.update(zip(new, self.encode(new), strict=True))
        return torch.stack([self.known[text] for text in texts])


def main(config: TrainConfig) -> None:
    """Trains and measures every setting in turn."""
    console, path = Console(), Path(config.run_dir) / "ablation.json"
    rows = known_rows(path)
    encode = Remembered(SentenceEncoder(offline=config.offline).encode)
    for name, changes in chosen_settings().items():
        if name in rows:
            continue
        console.rule(name)
        # What the user typed comes before what the row changes.
        changed = compose(["+recipe=llama_lora", *REDUCED, *_typed(), *changes, f"run_dir={config.run_dir}/runs"])
        rows[name] = measure(changed, encode, console)
        release()
        report = {"machine": machine(), "overrides": [*REDUCED, *_typed()], "rows": rows}
        write_text(path, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        show(rows, console)


def known_rows(path: Path) -> dict[str, dict[str, float]]:
    """Rows trained before under the same overrides on the same machine; none where the file is of others."""
    if not path.is_file():
        return {}
    report = json.loads(path.read_text(encoding="utf-8"))
    same = report.get("machine") == machine() and report.get("overrides") == [*REDUCED, *_typed()]
    return dict(report["rows"]) if same else {}


def chosen_settings() -> dict[str, tuple[str, ...]]:
    """Those that `rows=` names; all without it. Raises ConfigError for a name that is none."""
    given = [argument.removeprefix("rows=") for argument in sys.argv[1:] if argument.startswith("rows=")]
    names = given[-1].split(",") if given else list(SETTINGS)
    if unknown := sorted(set(names) - set(SETTINGS)):
        raise ConfigError(f"rows={','.join(unknown)}: no such setting; there are {', '.join(SETTINGS)}")
    return {name: SETTINGS[name] for name in names}


def measure(config: TrainConfig, encode: Remembered, console: Console) -> dict[str, float]:
    """One training: its last evaluation on held-out data, and the request's verdict on the evaluation sets."""
    started = time.monotonic()
    torch.manual_seed(config.seed)
    model, renderer = load_model(config)
    data = prepare(config, model, renderer, lambda line: None, encode)
    trained = fit(config, model, renderer, data, console)
    sets: dict[str, Sequence[Record]] = {
        "harmful": load_set("harmful"),
        "benign": load_set("benign", 160),
        "over_refusal": load_set("over_refusal"),
        "pairs": load_set("pairs"),
        "calibration": data.calibration,
    }
    found = verdicts(config, trained, data, renderer.tokenizer, sets)
    figures = {key: last_value(trained, key) for key in COLUMNS if key.startswith("eval_")}
    figures |= request_figures(found, sets, config.safety.calibration)
    figures["minutes"] = (time.monotonic() - started) / 60
    return figures


def verdicts(
    config: TrainConfig,
    trained: TrainedModel,
    data: TrainingData,
    tokenizer: object,
    sets: dict[str, Sequence[Record]],
) -> dict[str, torch.Tensor]:
    """The request's logits on each set, computed as a served model would."""
    live = SafeModel(trained.model, tokenizer, trained.parts, safety_card(config, data, None))
    with merged(trained.model), weights_as(trained.model, serving_dtype(config.model.dtype)):
        return {name: torch.tensor(live.score_logits([r.prompt for r in rows])) for name, rows in sets.items()}


def last_value(trained: TrainedModel, key: str) -> float:
    """The newest value of a metric in the trainer's log; nan where it was never logged."""
    return next((float(entry[key]) for entry in reversed(trained.history) if key in entry), float("nan"))


def show(rows: dict[str, dict[str, float]], console: Console) -> None:
    """The table so far."""
    table = Table("setting", *COLUMNS.values())
    for name, figures in rows.items():
        table.add_row(name, *(f"{figures[key]:.1f}" if key == "minutes" else f"{figures[key]:.3f}" for key in COLUMNS))
    console.print(table)


def _typed() -> list[str]:
    return [argument for argument in sys.argv[1:] if not argument.startswith(("run_dir=", "rows="))]


if __name__ == "__main__":
    overrides = [argument for argument in sys.argv[1:] if not argument.startswith("rows=")]
    sys.exit(run_command(main, argv=["+recipe=llama_lora", "run_dir=outputs/ablation", *overrides]))
