"""Training data from sources to examples: load, sample, check for leaks, mix, pair, split, render."""

from __future__ import annotations

import copy
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from safealign.config.groups import SourceConfig
from safealign.config.roots import TrainConfig
from safealign.data.leaks import drop_leaks, find_leaks
from safealign.data.mixing import MixSettings, build_mix
from safealign.data.pairings import PairingSettings, pair
from safealign.data.parts import take_part
from safealign.data.records import BENIGN, MALICIOUS, Record
from safealign.data.refusals import names_harm
from safealign.data.rendering import Renderer
from safealign.data.sources import known_sources, load_records
from safealign.data.templates import load_templates
from safealign.data.validation import require_valid
from safealign.errors import DataError
from safealign.evaluation.sets import load_set
from safealign.judges.refusal import RefusalMatcher
from safealign.modeling.precision import has_fast_bf16
from safealign.sampling import Sampler, SamplingSettings, spread
from safealign.training.examples import Example, ExampleSettings, build_examples

Say = Callable[[str], None]


@dataclass
class TrainingData:
    """What a run trains, evaluates and calibrates on; `report` says where it came from and what was left out.

    `requests`: the mixed requests that train the verdict, which baselines are trained on as well. `calibration`:
    benign requests that training never sees. `harmful_answers`: for metrics of windows.
    """

    train: list[Example]
    validation: list[Example]
    requests: list[Record]
    calibration: list[Record]
    report: dict[str, Any] = field(default_factory=dict)


def example_settings(config: TrainConfig) -> ExampleSettings:
    """The drawing settings that a config asks for."""
    safety = config.safety
    return ExampleSettings(
        trigger=safety.trigger,
        placement=safety.placement,
        window_length=safety.windows.length,
        refresh_length=config.decoding.r1,
        windows_per_answer=safety.windows.per_answer,
        window_sees_query=safety.windows.sees_query,
        gate_closed_share=safety.gate.closed_share,
        follow_windows=safety.gate.follow_windows,
        recovery_share=safety.recovery_share,
        max_length=config.data.max_length,
    )


def load_sources(config: TrainConfig) -> list[Record]:
    """Every record of every source; raises DataError that lists all bad rows of all of them."""
    records = [record for source in config.data.sources for record in load_source(source, config.offline)]
    require_valid(records, "the training sources together")
    return records


def load_source(source: SourceConfig, offline: bool) -> list[Record]:
    """The records of one source: its part, then at most `limit` of them."""
    refused = RefusalMatcher().refused
    known = source.source in known_sources()
    records = load_records(
        source.source,
        split=source.split,
        fields=source.fields,
        label=source.label,
        refused=None if known else refused,
        offline=offline,
    )
    if known:  # a pinned data set cannot be corrected by the user: what is at odds keeps its prompt only
        records = [_prompt_only(r) if _at_odds(r, refused) else r for r in records]
    return take_part(records, source.part, source.source)[: source.limit]


def _at_odds(record: Record, refused: Callable[[str], bool]) -> bool:
    """A refusal where an answer was promised: labelled harmful, or given to a benign request."""
    answered = record.response_label == MALICIOUS or record.label == BENIGN
    return answered and refused(record.response or "")


def _prompt_only(record: Record) -> Record:
    return replace(record, messages=record.prompt, response_label=None, spans=(), complete=True)


def evaluation_prompts(config: TrainConfig) -> dict[str, list[str]]:
    """The prompts of every evaluation set that training must not repeat."""
    return {
        name: [record.request for record in load_set(name, offline=config.offline)] for name in config.data.evaluation
    }


def prepare(config: TrainConfig, model: Any, renderer: Renderer, say: Say, encode: Any = None) -> TrainingData:
    """Runs every step; what is sampled from `model` comes from the cache when it is there."""
    records = load_sources(config)
    sampler = Sampler(_quick_copy(model), renderer, SamplingSettings(**asdict(config.data.sampling)))
    everyday, compliant = _sample(config, sampler, records, say)
    records, leaks = _without_leaks(config, [*records, *everyday, *compliant], encode, say)
    kept, calibration = _hold_out(records, config)
    harmful = [record for record in kept if record.response_label == MALICIOUS]
    templates = load_templates(offline=config.offline) if config.data.mix.wrapped else ()
    requests = build_mix(
        [_request(record) for record in kept], MixSettings(**asdict(config.data.mix)), config.seed, templates
    )
    pairing = PairingSettings(config.safety.trigger, config.data.refusals, config.data.transitions)
    paired = pair(requests, harmful, pairing, config.seed)
    train, validation = _split(paired, config)
    settings = example_settings(config)
    data = TrainingData(
        build_examples(train, renderer, settings, config.seed),
        build_examples(validation, renderer, settings, config.seed + 1),
        requests,
        calibration,
    )
    data.report = _report(records, leaks, data)
    for line in describe(data):
        say(line)
    return data


def _quick_copy(model: Any) -> Any:
    """The model in bf16 for sampling, where the device is good at it."""
    return copy.deepcopy(model).to(torch.bfloat16) if has_fast_bf16() else model


def _request(record: Record) -> Record:
    """A record as a request for the mix: a harmful answer stays behind."""
    return _prompt_only(record) if record.response_label == MALICIOUS else record


def _sample(
    config: TrainConfig, sampler: Sampler, records: Sequence[Record], say: Say
) -> tuple[list[Record], list[Record]]:
    wanted = config.data.sampling
    matcher = RefusalMatcher()
    everyday: list[Record] = []
    compliant: list[Record] = []
    if wanted.everyday:
        say(f"everyday requests of the undefended model, with its own answers: {wanted.everyday} wanted")
        everyday = sampler.everyday(lambda text: not names_harm(text))
        say(f"  {len(everyday)} in hand")
    malicious = [r for r in records if r.label == MALICIOUS and r.response_label != MALICIOUS]
    if wanted.compliant and malicious:
        say(f"the undefended model's own answers to malicious training requests: {wanted.compliant} wanted")
        compliant = sampler.compliant(malicious, matcher.refused)
        say(f"  {len(compliant)} complied with")
    return everyday, compliant


def _without_leaks(
    config: TrainConfig, records: list[Record], encode: Any, say: Say
) -> tuple[list[Record], dict[str, dict[str, int]]]:
    check = config.data.leak_check
    if not check.enabled:
        say("leak check: switched off; figures on evaluation sets may be flattered")
        return records, {}
    leaks = find_leaks([r.request for r in records], evaluation_prompts(config), encode, check.threshold)
    kept, report = drop_leaks(records, leaks)
    say(report.summary())
    if leaks and check.action == "error":
        raise DataError(
            f"{len(report.dropped)} training prompts repeat evaluation prompts; take them out, or set "
            "data.leak_check.action=drop",
            [f"{where}: {leak.kind} match with {leak.evaluation}[{leak.index}]" for where, leak in report.dropped],
        )
    return kept, report.counts()


def _hold_out(records: Sequence[Record], config: TrainConfig) -> tuple[list[Record], list[Record]]:
    """Takes benign requests for calibration out of training: evenly from every source that has enough."""
    benign = [r for r in records if r.label == BENIGN and r.response]
    units = min(config.safety.calibration.units, len(benign) // 3)
    held = {id(r) for r in spread(benign, units)}
    return [r for r in records if id(r) not in held], [r for r in benign if id(r) in held]


def _split(records: Sequence[Record], config: TrainConfig) -> tuple[list[Record], list[Record]]:
    """Splits by the request behind a record, so that restyled copies stay on one side."""
    rng = random.Random(f"split/{config.seed}")
    groups = sorted({_group(record) for record in records})
    held = set(rng.sample(groups, round(config.data.val_fraction * len(groups))))
    train = [r for r in records if _group(r) not in held]
    rng.shuffle(train)
    return train, [r for r in records if _group(r) in held]


def _group(record: Record) -> str:
    return (record.id or record.request).split("#")[0]


def _report(records: Sequence[Record], leaks: dict[str, dict[str, int]], data: TrainingData) -> dict[str, Any]:
    examples = data.train
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.input_ids, example.labels)).encode())
    return {
        "records": dict(Counter(f"{r.source}/{r.label}" for r in records)),
        "leaks_left_out": leaks,
        "examples": {"train": len(examples), "validation": len(data.validation)},
        "requests": dict(Counter(str(r.label) for r in data.requests)),
        "calibration_requests": dict(Counter(str(r.source) for r in data.calibration)),
        "tokens": {
            "rows": sum(e.n_tokens for e in examples),
            "trained": sum(label != -100 for e in examples for label in e.labels),
        },
        "safety_rows": dict(
            Counter(f"{row.kind.name.lower()}/{row.label}" for e in examples for row in e.layout.safety)
        ),
        "digest": digest.hexdigest()[:32],
    }


def describe(data: TrainingData) -> list[str]:
    """The data report in a few lines for the terminal."""
    report = data.report
    return [
        f"training data: {report['examples']['train']} examples, {report['tokens']['rows']:,} rows "
        f"({report['tokens']['trained']:,} trained), {report['examples']['validation']} for validation",
        "  safety rows: " + ", ".join(f"{n} {name}" for name, n in sorted(report["safety_rows"].items())),
        f"  held out for calibration: {sum(report['calibration_requests'].values())} benign requests",
    ]
