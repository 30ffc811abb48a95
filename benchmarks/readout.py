"""Where should the head read? Depths, pools and data mix on frozen states, one factor at a time.

`python -m benchmarks.readout [overrides of +recipe=llama_lora …]` prints a table and writes it to
`RUN_DIR/readout.json`. Each row is the head's own warm start (a logistic regression), no joint training.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from safealign.commands import run_command
from safealign.config.roots import TrainConfig
from safealign.data.records import MALICIOUS, Record
from safealign.data.rendering import Renderer
from safealign.data.templates import load_templates
from safealign.data.wrapping import generic_templates, split
from safealign.evaluation.head_table import linear_baseline, wrapped_set
from safealign.evaluation.metrics.ranking import auroc
from safealign.evaluation.sets import load_set
from safealign.files import write_text
from safealign.layout import build_layout, request_row
from safealign.modeling.attach import attach
from safealign.modeling.features import layout_features
from safealign.modeling.safety_token import HeadSettings
from safealign.training.pipeline import load_model, prepare_data

DEPTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
POOLS = ("row", "mean", "last")
CHOSEN_DEPTHS, CHOSEN_POOLS = (0.4, 0.5, 0.6), ("row", "mean", "last")


def read_outs() -> dict[str, tuple[tuple[float, ...], tuple[str, ...]]]:
    """The read-outs to compare: the chosen one first, then one factor changed at a time."""
    found = {"chosen: 0.4 0.5 0.6, row mean last": (CHOSEN_DEPTHS, CHOSEN_POOLS)}
    found |= {f"depth {depth:g} alone": ((depth,), CHOSEN_POOLS) for depth in DEPTHS}
    found |= {"depths 0.5 0.7 0.9": ((0.5, 0.7, 0.9), CHOSEN_POOLS)}
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
    sets = evaluation_sets()
    states = {name: extract(parts, renderer, records, config) for name, records in sets.items()}
    train = extract(parts, renderer, data.requests, config)
    hidden = model.config.hidden_size
    rows = {}
    for name, (depths, pools) in read_outs().items():
        rows[name] = measure(train, states, data.requests, sets, columns(depths, pools, hidden))
    plain = [i for i, record in enumerate(data.requests) if "#" not in str(record.id)]
    chosen = columns(CHOSEN_DEPTHS, CHOSEN_POOLS, hidden)
    rows["mix: as it comes, nothing restyled or wrapped"] = measure(
        train[plain], states, [data.requests[i] for i in plain], sets, chosen
    )
    show(rows, console)
    write_text(Path(config.run_dir) / "readout.json", json.dumps(rows, indent=2) + "\n")


def evaluation_sets() -> dict[str, list[Record]]:
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


def extract(parts: object, renderer: Renderer, records: Sequence[Record], config: TrainConfig) -> torch.Tensor:
    """All pools at all depths, `[N, pools × depths × H]`."""
    prompts = [renderer.render(record.prompt) for record in records]
    layouts = [build_layout(p, [request_row(p, config.safety.placement)], gate=False) for p in prompts]
    return torch.cat(layout_features(parts, [p.input_ids for p in prompts], layouts))  # type: ignore[arg-type]


def columns(depths: Sequence[float], pools: Sequence[str], hidden: int) -> torch.Tensor:
    """Which columns of `extract` a read-out uses."""
    wanted = [
        torch.arange((POOLS.index(pool) * len(DEPTHS) + DEPTHS.index(depth)) * hidden, (POOLS.index(pool) * len(DEPTHS)
        + DEPTHS.index(depth) + 1) * hidden)
        for pool in pools
        for depth in depths
    ]
    return torch.cat(wanted)


def measure(
    train: torch.Tensor,
    states: dict[str, torch.Tensor],
    requests: Sequence[Record],
    sets: dict[str, list[Record]],
    chosen: torch.Tensor,
) -> dict[str, float]:
    """AUROC of each column of the head's table."""
    by_id = {id(record): row for row, record in enumerate(requests)}
    tables = {id(record): (states[name], i) for name, records in sets.items() for i, record in enumerate(records)}

    def features(records: Sequence[Record]) -> torch.Tensor:
        found = []
        for record in records:
            table, row = tables.get(id(record)) or (train, by_id[id(record)])
            found.append(table[row, chosen])
        return torch.stack(found)

    score = linear_baseline(features, requests)
    harmful = score(sets["harmful"])
    figures = {}
    for name in ("benign", "over_refusal"):
        other = score(sets[name])
        labels = torch.tensor([True] * len(harmful) + [False] * len(other))
        figures[name] = auroc(torch.cat([harmful, other]), labels).value
    for name in ("pairs", "wrapped"):
        labels = torch.tensor([record.label == MALICIOUS for record in sets[name]])
        figures[name] = auroc(score(sets[name]), labels).value
    return figures


def show(rows: dict[str, dict[str, float]], console: Console) -> None:
    """The table on the terminal."""
    table = Table("read-out", "vs benign", "vs over-refusal", "held-out pairs", "unseen wrappers")
    for name, figures in rows.items():
        table.add_row(name, *(f"{figures[key]:.3f}" for key in ("benign", "over_refusal", "pairs", "wrapped")))
    console.print(table)


if __name__ == "__main__":
    sys.exit(run_command(main, argv=["+recipe=llama_lora", "run_dir=outputs/readout", *sys.argv[1:]]))
