"""Where should the head read? Depths, pools and data mix on frozen states, one factor at a time.

`python -m benchmarks.readout [overrides of +recipe=llama_lora …]` prints a table and writes it to
`RUN_DIR/readout.json`. Each row is the head's own warm start (a logistic regression), no joint training.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.request_figures import request_figures
from safealign.commands import run_command
from safealign.config.roots import TrainConfig
from safealign.data.mixing import kind_of
from safealign.data.records import Record
from safealign.data.rendering import Renderer
from safealign.data.styles import STYLES
from safealign.data.templates import load_templates
from safealign.data.wrapping import generic_templates, split
from safealign.evaluation.head_table import linear_baseline, wrapped_set
from safealign.evaluation.sets import load_set
from safealign.files import write_text
from safealign.judges.linear import PENALTY_PER_TEXT
from safealign.layout import build_layout, request_row
from safealign.modeling.attach import SafetyParts, attach
from safealign.modeling.features import feature_columns, layout_features
from safealign.modeling.precision import compute_dtype
from safealign.modeling.safety_token import HeadSettings
from safealign.training.pipeline import load_model, prepare_data

DEPTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
POOLS = ("row", "mean", "last")
CHOSEN_DEPTHS, CHOSEN_POOLS = (0.5, 0.7, 0.9), ("row", "mean", "last")
PENALTIES = (0.02, 0.1, 0.5, 2.0, 10.0)


def read_outs() -> dict[str, tuple[tuple[float, ...], tuple[str, ...]]]:
    """The read-outs to compare: the chosen one first, then one factor changed at a time."""
    found: dict[str, tuple[tuple[float, ...], tuple[str, ...]]] = {
        "chosen: 0.5 0.7 0.9, row mean last": (CHOSEN_DEPTHS, CHOSEN_POOLS)
    }
    found |= {f"depth {depth:g} alone": ((depth,), CHOSEN_POOLS) for depth in DEPTHS}
    found |= {"depths 0.4 0.5 0.6": ((0.4, 0.5, 0.6), CHOSEN_POOLS)}
    found |= {"depths 0.4 0.5 0.6 0.9": ((0.4, 0.5, 0.6, 0.9), CHOSEN_POOLS)}
    for pools in (("row",), ("mean",), ("last",), ("row", "mean"), ("mean", "last")):
        found[f"pool {' '.join(pools)}"] = (CHOSEN_DEPTHS, pools)
    return found | {"the paper's: last layer, row": ((1.0,), ("row",))}


def main(config: TrainConfig) -> None:
    """Extracts all states once, then fits every read-out on them."""
    console = Console()
    model, renderer = load_model(config)
    data = prepare_data(config, model, renderer, console)
    parts = attach(model, HeadSettings(DEPTHS, POOLS), config.safety.init, renderer.content_ids("assistant"))
    sets = evaluation_sets() | {"train": data.requests, "calibration": data.calibration}
    states = {name: extract(parts, renderer, records, config) for name, records in sets.items()}

    def row(reads: HeadSettings, requests: Sequence[Record], penalty: float = PENALTY_PER_TEXT) -> dict[str, float]:
        chosen = feature_columns(parts.settings, reads, len(parts.layers), parts.hidden_size)
        return measure(states, sets, requests, chosen, penalty, config)

    rows = {name: row(HeadSettings(*reads), data.requests) for name, reads in read_outs().items()}
    chosen = HeadSettings(CHOSEN_DEPTHS, CHOSEN_POOLS)
    rows |= {f"penalty {penalty:g} per text": row(chosen, data.requests, penalty) for penalty in PENALTIES}
    rows |= {f"mix without {name}": row(chosen, kept) for name, kept in poorer_mixes(data.requests).items()}
    show(rows, console)
    write_text(Path(config.run_dir) / "readout.json", json.dumps(rows, indent=2) + "\n")


def poorer_mixes(requests: Sequence[Record]) -> dict[str, list[Record]]:
    """The training requests without one of the things that the rules or the model add."""
    contrasts = ("about", "intent", "homonym", "person", "falsehood", "argument")
    leave_out: dict[str, Callable[[Record], bool]] = {
        "wrappers": lambda record: kind_of(record) == "wrapped",
        "styles": lambda record: kind_of(record) in STYLES,
        "contrasts": lambda record: kind_of(record) in contrasts,
        "requests of the model's own": lambda record: record.source == "sampled_everyday",
        "anything derived": lambda record: kind_of(record) in ("wrapped", *STYLES, *contrasts),
    }
    return {name: [r for r in requests if not drop(r)] for name, drop in leave_out.items()}


def evaluation_sets() -> dict[str, Sequence[Record]]:
    """Harmful, benign, over-refusal, contrast pairs, and both labels in unseen wrappers."""
    harmful, benign = load_set("harmful"), load_set("benign", 160)
    _, held_out = split((*load_templates(), *generic_templates()))
    return {
        "harmful": harmful,
        "benign": benign,
        "over_refusal": load_set("over_refusal"),
        "pairs": load_set("pairs"),
        "wrapped": wrapped_set(harmful, benign, held_out, 159),
    }


def extract(parts: SafetyParts, renderer: Renderer, records: Sequence[Record], config: TrainConfig) -> torch.Tensor:
    """All pools at all depths, `[N, pools × depths × H]`."""
    prompts = [renderer.render(record.prompt) for record in records]
    layouts = [build_layout(p, [request_row(p, config.safety.placement)], gate=False) for p in prompts]
    dtype = compute_dtype(config.trainer.precision)
    with torch.autocast(str(parts.head.mean.device.type), dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        return torch.cat(layout_features(parts, [p.input_ids for p in prompts], layouts))


def measure(
    states: dict[str, torch.Tensor],
    sets: dict[str, Sequence[Record]],
    requests: Sequence[Record],
    chosen: torch.Tensor,
    penalty: float,
    config: TrainConfig,
) -> dict[str, float]:
    """AUROC of each column of the head's table, and what is missed at the calibrated threshold."""
    rows = {id(record): states[name][i, chosen] for name, records in sets.items() for i, record in enumerate(records)}
    score = linear_baseline(lambda records: torch.stack([rows[id(r)] for r in records]), requests, penalty)
    logits = {name: score(records) for name, records in sets.items()}
    return request_figures(logits, sets, config.safety.calibration)


def show(rows: dict[str, dict[str, float]], console: Console) -> None:
    """The table on the terminal; the last two columns are shares at the calibrated threshold."""
    names = ("benign", "over_refusal", "pairs", "wrapped", "missed", "alarms")
    heads = ("vs benign", "vs over-refusal", "held-out pairs", "wrapped", "harmful missed", "over-refusal alarms")
    table = Table("read-out", *heads)
    for name, figures in rows.items():
        table.add_row(name, *(f"{figures[key]:.3f}" for key in names))
    console.print(table)


if __name__ == "__main__":
    sys.exit(run_command(main, argv=["+recipe=llama_lora", "run_dir=outputs/readout", *sys.argv[1:]]))
