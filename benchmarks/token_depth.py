"""Where should the token head read? One depth at a time, on a trained export's own states.

    python -m benchmarks.token_depth model=outputs/llama_lora/export [run_dir=outputs/token_depth]

fits the head at each depth on half of `answers=600` of the run's answers (those that windows are fitted on), twelve
tokens of each as training does, and measures on every token of the other half: AUROC of single tokens, and the share of
harmful answers at which it stirs within 8 tokens when it may stir at 1 % or 5 % of benign tokens. All depths are read
in one pass. Prints a table and writes `run_dir/token_depth.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from safealign.evaluation.metrics.ranking import auroc
from safealign.files import write_text
from safealign.judges.linear import PENALTY_PER_TEXT
from safealign.model import SafeModel, load
from safealign.modeling.hidden import HiddenExtractor
from safealign.modeling.safety_token import SafetyHead
from safealign.sampling import spread
from safealign.training.evaluating import read_run_config
from safealign.training.examples import IGNORED, Example
from safealign.training.pipeline import load_model, prepare_data
from safealign.training.token_head import fit_linear, labelled_rows, read_tokens

DEPTHS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
CHOICES = (*((depth,) for depth in DEPTHS), (0.4, 0.6), (0.5, 0.9))
WITHIN = 8  # tokens after an answer has turned harmful
Chosen = tuple[Example, list[int]]


def main(arguments: Sequence[str]) -> None:
    """Measures every depth and two pairs of them."""
    given = {"run_dir": "outputs/token_depth", "answers": "600"} | dict(item.split("=", 1) for item in arguments)
    console = Console()
    model = load(given["model"], dtype="auto")
    tokens = read(model, labelled_answers(Path(given["model"]), int(given["answers"]), console))
    found = {" + ".join(f"{depth:g}" for depth in depths): measure(tokens, depths) for depths in CHOICES}
    table = Table("depth", "token AUROC", "stirs within 8 at 1 %", "at 5 %")
    for name, row in found.items():
        table.add_row(name, *(f"{row[key]:.3f}" for key in ("auroc", "stirs_1", "stirs_5")))
    console.print(table)
    write_text(Path(given["run_dir"]) / "token_depth.json", json.dumps(found, indent=2) + "\n")


def labelled_answers(export: Path, count: int, console: Console) -> list[Chosen]:
    """`count` of the run's answers, evenly spaced, with the rows of their labelled tokens."""
    config = read_run_config(export.parent / "config.yaml")
    if config is None:
        raise SystemExit(f"{export.parent / 'config.yaml'} is not there: name the export inside its run directory")
    base, renderer = load_model(config)
    answers = spread(prepare_data(config, base, renderer, console).warm_answers, count)
    rows = [[row for row, label in enumerate(e.token_labels) if label != IGNORED] for e in answers]
    return [(example, found) for example, found in zip(answers, rows, strict=True) if found]


@dataclass(frozen=True)
class Tokens:
    """Labelled tokens `[N]` of all answers: states `[N, depths, width]`, labels, numbers of their answers, thinned."""

    states: torch.Tensor
    labels: torch.Tensor
    texts: torch.Tensor
    fitted: torch.Tensor  # whether training would read this token


def read(model: SafeModel, chosen: Sequence[Chosen]) -> Tokens:
    """Reads every depth of every labelled token in one pass over the answers."""
    assert model.parts is not None
    states = read_tokens(HiddenExtractor(model.parts.lm, DEPTHS), chosen)
    kept = [set(labelled_rows(example)) for example, _ in chosen]
    return Tokens(
        states.unflatten(1, (len(DEPTHS), -1)),
        torch.tensor([float(example.token_labels[row]) for example, rows in chosen for row in rows]),
        torch.tensor([index for index, (_, rows) in enumerate(chosen) for _ in rows]),
        torch.tensor([row in kept[index] for index, (_, rows) in enumerate(chosen) for row in rows]),
    )


def measure(tokens: Tokens, depths: tuple[float, ...]) -> dict[str, float]:
    """Fits on every other answer, and measures on the rest."""
    features = tokens.states[:, [DEPTHS.index(depth) for depth in depths]].flatten(1)
    train = tokens.texts % 2 == 0
    fitted = train & tokens.fitted
    head = SafetyHead(features.shape[1])
    fit_linear(head, features[fitted], tokens.labels[fitted], PENALTY_PER_TEXT * len(tokens.texts[train].unique()))
    with torch.no_grad():
        logits = head(features[~train])
    return figures(logits, tokens.labels[~train], tokens.texts[~train])


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
