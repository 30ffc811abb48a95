"""Where should the token head read? One depth at a time, on a trained export's own states.

    python -m benchmarks.token_depth model=outputs/llama_lora/export [run_dir=outputs/token_depth]

fits the head at each depth on half of the run's answers (those that windows are fitted on) and measures on the other
half: AUROC of single tokens, and the share of harmful answers at which it stirs within 8 tokens when it may stir at
1 % or 5 % of benign tokens. Prints a table and writes `run_dir/token_depth.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from safealign.evaluation.metrics.ranking import auroc
from safealign.files import write_text
from safealign.judges.linear import PENALTY_PER_TEXT
from safealign.model import SafeModel, load
from safealign.modeling.attach import SafetyParts
from safealign.modeling.safety_token import SafetyHead
from safealign.training.evaluating import read_run_config
from safealign.training.examples import IGNORED, Example
from safealign.training.pipeline import load_model, prepare_data
from safealign.training.token_head import fit_linear, read_tokens

DEPTHS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
WITHIN = 8  # tokens after an answer has turned harmful
Chosen = tuple[Example, list[int]]


def main(arguments: Sequence[str]) -> None:
    """Measures every depth."""
    given = {"run_dir": "outputs/token_depth"} | dict(item.split("=", 1) for item in arguments)
    console = Console()
    model = load(given["model"], dtype="auto")
    chosen = labelled_answers(Path(given["model"]), console)
    found = {f"{depth:g}": measure(model, chosen, (depth,)) for depth in DEPTHS}
    found["0.4 + 0.6"] = measure(model, chosen, (0.4, 0.6))
    table = Table("depth", "token AUROC", "stirs within 8 at 1 %", "at 5 %")
    for name, row in found.items():
        table.add_row(name, *(f"{row[key]:.3f}" for key in ("auroc", "stirs_1", "stirs_5")))
    console.print(table)
    write_text(Path(given["run_dir"]) / "token_depth.json", json.dumps(found, indent=2) + "\n")


def labelled_answers(export: Path, console: Console) -> list[Chosen]:
    """The run's answers with the rows of their labelled tokens."""
    config = read_run_config(export.parent / "config.yaml")
    if config is None:
        raise SystemExit(f"{export.parent / 'config.yaml'} is not there: name the export inside its run directory")
    base, renderer = load_model(config)
    answers = prepare_data(config, base, renderer, console).warm_answers
    rows = [[row for row, label in enumerate(e.token_labels) if label != IGNORED] for e in answers]
    return [(example, found) for example, found in zip(answers, rows, strict=True) if found]


def measure(model: SafeModel, chosen: Sequence[Chosen], depths: tuple[float, ...]) -> dict[str, float]:
    """Fits on every other answer, and measures on the rest."""
    assert model.parts is not None
    model.parts.detach()
    parts = SafetyParts(model.hf, replace(model.parts.settings, token_layers=depths))
    try:
        features, labels, texts = read(parts, chosen)
    finally:
        parts.detach()
    train = texts % 2 == 0
    head = SafetyHead(features.shape[1])
    fit_linear(head, features[train], labels[train], PENALTY_PER_TEXT * int(texts.max() + 1) / 2)
    with torch.no_grad():
        logits = head(features[~train])
    return figures(logits, labels[~train], texts[~train])


def read(parts: SafetyParts, chosen: Sequence[Chosen]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States, labels and text numbers of every labelled token."""
    labels = torch.tensor([float(example.token_labels[row]) for example, rows in chosen for row in rows])
    texts = torch.tensor([index for index, (_, rows) in enumerate(chosen) for _ in rows])
    return read_tokens(parts, chosen), labels, texts


def figures(logits: torch.Tensor, labels: torch.Tensor, texts: torch.Tensor) -> dict[str, float]:
    """Ranking of tokens, and how many harmful answers make the head stir soon after they turn."""
    found = {"auroc": auroc(logits, labels > 0).value}
    for share in (0.01, 0.05):
        theta = torch.quantile(logits[labels == 0][:1_000_000], 1 - share)
        stirred = []
        for text in texts.unique().tolist():
            harmful = logits[(texts == text) & (labels > 0)]
            if len(harmful):
                stirred.append(bool((harmful[:WITHIN] >= theta).any()))
        found[f"stirs_{share * 100:.0f}"] = sum(stirred) / max(1, len(stirred))
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
