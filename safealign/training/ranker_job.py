"""The ranker's job from config to export: candidates → states → training → export beside the unchanged model."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from safealign.config.composing import refuse
from safealign.config.roots import TrainConfig
from safealign.data.records import Record
from safealign.errors import CheckpointError, SafealignError
from safealign.evaluation.job import machine
from safealign.evaluation.metrics.rates import Rate
from safealign.files import write_text
from safealign.model import SafeModel, load
from safealign.modeling.checkpoint import SafetyCard
from safealign.modeling.exporting import export_model
from safealign.modeling.feature_cache import FeatureCache
from safealign.modeling.hidden import HiddenExtractor
from safealign.ranking import (
    Fitted,
    Picks,
    Ranker,
    StateList,
    by_label,
    fit_ranker,
    picks,
    ranker_block,
    save_ranker,
    score_with,
    unaided,
)
from safealign.ranking.reading import Candidates, Counts, as_list, group, read_states
from safealign.training.callbacks.metrics_file import MetricsFile
from safealign.training.cards import write_card
from safealign.training.carrying import carried_export
from safealign.training.checks import config_problems
from safealign.training.pipeline import announce, base_name, decoding_options, load_model, sayer, weights_dtype
from safealign.training.ranker_data import (
    Say,
    candidate_settings,
    candidates,
    fit_settings,
    judge,
    ranker_settings,
)
from safealign.training.splitting import split
from safealign.training.tenths import Tenths
from safealign.training.tracking import Tracker


@dataclass
class RankerData:
    """Lists of states by request: to train on, to stop by, and held out, which decide nothing; `some` answers."""

    train: list[StateList]
    stopping: list[StateList]
    held_out: list[StateList]
    some: list[Candidates]
    counts: Counts


def build_ranker(config: TrainConfig, console: Console, tracker: Tracker | None = None) -> Path:
    """Runs every stage and returns the export, verified by loading it.

    Raises ConfigError for settings that cannot work together, DataError where too few lists are left.
    """
    refuse([*config_problems(config), *ranker_problems(config)])
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    announce(config, console)
    say, tracker = sayer(console), tracker or Tracker()
    model = base_model(config)
    data = ranker_data(config, model, say)
    fitted, seconds = _fit(config, data, say, tracker)
    report = _report(config, data, fitted, seconds, model)
    write_text(Path(config.run_dir) / "report" / "ranker.json", json.dumps(report, indent=2) + "\n")
    tracker.figures(_figures(report))
    say(_line(report))
    model.ranker = fitted.ranker
    export = _export(config, model, fitted.ranker, report)
    _verify(config, model, export, data.some)
    console.print(f"exported and verified: {export}", highlight=False)
    if config.suite.name != "none":
        console.print(f"suite={config.suite.name}: no table here; python -m benchmarks.ranking measures a ranker")
    return export


def ranker_problems(config: TrainConfig) -> list[str]:
    """Settings of `ranker` that cannot be."""
    problems = []
    try:
        ranker_settings(config)
    except SafealignError as error:
        problems.append(str(error))
    if candidate_settings(config).per_request < 2:
        problems.append("ranker.candidates: direct, wrapped, prefilled and declined ask for fewer than 2 answers")
    if not config.data.val_fraction > 0:
        problems.append("data.val_fraction=0: a ranker stops by requests of their own; 0.3 will do")
    if config.adapter.quantization is not None:
        problems.append("adapter.quantization: a ranker's model is not trained, and is loaded as it is; adapter=none")
    return problems


def base_model(config: TrainConfig) -> SafeModel:
    """The model that stays as it is: a bare one, or an export with its safety parts."""
    folder = carried_export(config)
    if folder is None:
        lm, renderer = load_model(config)
        return SafeModel(lm, renderer.tokenizer)
    dtype = "bf16" if weights_dtype(config) is torch.bfloat16 else "fp32"
    return load(folder, dtype=dtype, attn=config.model.attn, offline=config.offline)


def ranker_data(config: TrainConfig, model: SafeModel, say: Say) -> RankerData:
    """Candidates sampled, labelled, read and split by request; what was left out is said and counted."""
    lm: Any = model.hf if model.parts is None else model.parts.lm
    groups, counts = group(candidates(config, lm, model.renderer, say), judge(config))
    for line in _told(counts):
        say(line)
    extractor = HiddenExtractor(lm, (config.ranker.layer,), (config.ranker.pool,))
    n = sum(1 + len(one.answers) for one in groups)
    say(f"states: {n} texts at depth {extractor.depths[0]}, {config.ranker.pool}")
    told = Tenths("read", n, say)
    states = read_states(groups, extractor, model.renderer, cache=FeatureCache(say=say), progress=told.add)
    lists = [as_list(one, found) for one, found in zip(groups, states, strict=True)]
    train, stopping, held_out = ([lists[i] for i in part] for part in divide(config, groups))
    return RankerData(train, stopping, held_out, groups[:4], counts)


def divide(config: TrainConfig, groups: Sequence[Candidates]) -> tuple[list[int], list[int], list[int]]:
    """Indices of the lists to train on, to stop by, and held out: by request, with its pair and its versions."""
    requests = [replace(one.first, messages=one.first.prompt, id=one.request_id) for one in groups]
    train, others = split(requests, config.data.val_fraction, config.seed)
    stopping, held_out = split(others, 0.5, config.seed)
    parts = [{record.id for record in part} for part in (train, stopping, held_out)]
    one, two, three = ([i for i, record in enumerate(requests) if record.id in part] for part in parts)
    return one, two, three


def _told(counts: Counts) -> list[str]:
    dropped = ", ".join(f"{n} {name.partition(': ')[2]}" for name, n in counts.items() if name.startswith("dropped"))
    return [
        f"  {counts['answers']} answers; left out: {counts['repeats']} repeats, {counts['unlabelled']} of no kind",
        f"  {counts.get('lists', 0)} of {counts['requests']} lists have both kinds; dropped: {dropped or 'none'}",
    ]


def _fit(config: TrainConfig, data: RankerData, say: Say, tracker: Tracker) -> tuple[Fitted, float]:
    started, metrics = time.monotonic(), MetricsFile(Path(config.run_dir) / "metrics.jsonl", {"stage": "ranker"})

    def log(row: dict[str, float]) -> None:
        """Writes an epoch down, and says it."""
        epoch = int(row["epoch"])
        metrics.write({"step": epoch, **metrics.note, **row})
        tracker.metrics(row, epoch)
        say(
            f"  epoch {epoch}/{config.ranker.fit.epochs}: loss {row['loss']:.3f}; to stop by: loss "
            f"{row['stopping/loss']:.3f}, {row['stopping/accuracy']:.1%} good picks"
        )

    settings, fit = ranker_settings(config), fit_settings(config)
    counts = f"{len(data.train)} lists to learn from, {len(data.stopping)} to stop by, {len(data.held_out)} held out"
    say(f"ranker: {counts}")
    return fit_ranker(data.train, data.stopping, settings, fit, config.seed, log), time.monotonic() - started


def _report(
    config: TrainConfig, data: RankerData, fitted: Fitted, seconds: float, model: SafeModel
) -> dict[str, Any]:
    """Figures of the kept ranker on held-out requests, which decided nothing, and where it came from."""
    score = score_with(fitted.ranker)
    found = {"all": picks(score, data.held_out), **by_label(score, data.held_out)}
    found["without given openings"] = picks(score, unaided(data.held_out))
    lists = [*data.train, *data.stopping, *data.held_out]
    return {
        "held_out": {name: _figures_of(one) for name, one in found.items()},
        "epoch": fitted.epoch,
        "seconds": round(seconds, 2),
        "parameters": fitted.ranker.settings.parameters(fitted.ranker.width),
        "judge": config.ranker.judge,
        "candidates": data.counts,
        "records": dict(Counter(f"{one.source}/{one.label}" for one in lists)),
        "base": base_name(config),
        "recipe": config.name,
        "seed": config.seed,
        "machine": machine(),
    }


def _figures_of(found: Picks) -> dict[str, Any]:
    interval = list(Rate.of(found.hits).interval) if found.hits else None
    return found.to_dict() | {"interval": interval}


def _figures(report: dict[str, Any]) -> dict[str, float]:
    rows = report["held_out"].items()
    return {f"ranker/{name}/accuracy": row["accuracy"] for name, row in rows if row["accuracy"] is not None}


def _line(report: dict[str, Any]) -> str:
    parts = [
        f"{name} {row['accuracy']:.1%} of {row['n']} ({row['interval'][0]:.1%}–{row['interval'][1]:.1%}; at random "
        f"{row['random']:.1%})"
        for name, row in report["held_out"].items()
        if row["n"]
    ] or ["no list was left"]
    return f"epoch {report['epoch']} kept, {report['seconds']:.0f} s; good picks on held-out lists: {', '.join(parts)}"


def _export(config: TrainConfig, model: SafeModel, ranker: Ranker, report: dict[str, Any]) -> Path:
    drawn = candidate_settings(config)
    block = ranker_block(ranker, {"temperature": drawn.temperature, "top_p": drawn.top_p}, report)
    card = replace(model.card or bare_card(config, report), ranker=block)
    model.card = card

    def extras(folder: Path) -> None:
        """The ranker's own file, and the model card."""
        save_ranker(folder, ranker)
        write_card(folder, card)

    export = partial(export_model, merge=True, base_name=base_name(config), extras=extras)
    return export(Path(config.run_dir) / "export", model.hf, model.tokenizer, model.parts, card)


def bare_card(config: TrainConfig, report: dict[str, Any]) -> SafetyCard:
    """What `safety.json` says of a model without a safety head."""
    options = decoding_options(config) | {"safety": False}
    names = ("records", "base", "recipe", "seed")
    return SafetyCard(
        head=None,
        placement=config.safety.placement,
        window_sees_query=config.safety.windows.sees_query,
        trigger=config.safety.trigger,
        refusal=str(options.pop("refusal")),
        decoding=options,
        calibration={"note": "there is no safety head"},
        training={name: report[name] for name in names},
    )


def _verify(config: TrainConfig, live: SafeModel, export: Path, some: Sequence[Candidates]) -> None:
    """Loads the export and compares its rankings with those of the model in memory."""
    dtype = "bf16" if weights_dtype(config) is torch.bfloat16 else "fp32"
    loaded = load(export, dtype=dtype, attn=config.model.attn, offline=config.offline)
    for one in some:
        pairs = zip(_ranked(live, one.answers), _ranked(loaded, one.answers), strict=True)
        apart = max(abs(a - b) for a, b in pairs)
        if not apart <= (0.05 if dtype == "bf16" else 1e-3):
            raise CheckpointError(
                f"{export} scores answers otherwise than the model in memory (up to {apart:.3f} apart): do not use it; "
                "train it again"
            )


def _ranked(model: SafeModel, answers: Sequence[Record]) -> tuple[float, ...]:
    return model.rank(answers[0].prompt, [record.response or "" for record in answers]).scores
