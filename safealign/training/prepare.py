"""Training data from sources to examples: load, sample, check for leaks, mix, pair, split, render."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safealign.config.roots import TrainConfig
from safealign.data.mixing import MixSettings, build_mix
from safealign.data.pairings import PairingSettings, pair
from safealign.data.records import MALICIOUS, SAMPLED, Message, Record
from safealign.data.rendering import Renderer
from safealign.data.templates import load_templates
from safealign.errors import DataError
from safealign.evaluation.sets import load_set
from safealign.sampling import DEEP
from safealign.training.checks import data_problems
from safealign.training.examples import Example, ExampleSettings
from safealign.training.guarding import guarded
from safealign.training.kept_examples import kept_examples, rows_folder
from safealign.training.leaking import Encode, LeakGuard
from safealign.training.packing_examples import pack_examples
from safealign.training.preparing_pairs import Pairs, prepare_pairs
from safealign.training.self_made import apart, on_side, refuse_inside, sample
from safealign.training.sources import calibration_only, load_sources, prompt_only
from safealign.training.splitting import distinct, hold_out, split, unseen
from safealign.training.stages import DPO, SFT, stages

Say = Callable[[str], None]


@dataclass
class TrainingData:
    """What a run trains, evaluates and calibrates on; `report` says where it came from and what was left out.

    `requests`: all mixed requests; baselines are trained on them, and `warm` holds the same as prompts, on which
    the head is started; its windows start on `warm_answers`. `train` is the part that the model itself is trained on,
    with answers (none without a stage of SFT), `pairs` the preferences of a stage of DPO. `calibration`: benign
    requests that nothing else sees.
    """

    train: Sequence[Example]
    validation: Sequence[Example]
    requests: list[Record]
    warm: Sequence[Example]
    warm_answers: Sequence[Example]
    calibration: list[Record]
    pairs: Pairs = field(default_factory=Pairs)
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
        recovery_max_prefix=safety.recovery_max_prefix,
        name_category=safety.refusal_categories,
        max_length=config.data.max_length,
    )


def evaluation_prompts(config: TrainConfig) -> dict[str, list[str]]:
    """The prompts of every evaluation set that training must not repeat."""
    return {
        name: [record.request for record in load_set(name, offline=config.offline)] for name in config.data.evaluation
    }


def prepare(
    config: TrainConfig, model: Any, renderer: Renderer, say: Say, encode: Encode | None = None
) -> TrainingData:
    """Runs every step; what is sampled from `model` comes from the cache when it is there.

    `encode` finds prompts that repeat an evaluation prompt by meaning. Raises DataError for bad rows, and
    when the verdict or the thresholds would have nothing to rest on.
    """
    records = load_sources(config)
    sampled = sample(config, model, renderer, records, say)
    sampled.everyday = guarded(sampled.everyday, records, encode, say)
    return arrange(config, sampled.joined_to(records), renderer, say, encode)


def arrange(
    config: TrainConfig, records: Sequence[Record], renderer: Renderer, say: Say, encode: Encode | None = None
) -> TrainingData:
    """Training data from records: leak check, calibration units and validation set aside, mix, pairs, examples.

    Raises ConfigError where rendered examples would lie in the run directory, which is handed on to others.
    """
    refuse_inside(rows_folder(), Path(config.run_dir))
    guard = leak_guard(config, encode, say)
    spliced, whole = apart(records)
    clean = guard.clean(whole, say)
    kept, calibration = hold_out(clean, config.safety.calibration.units)
    calibration += unseen(guard.clean(calibration_only(config)), clean)
    train, held = split(kept, config.data.val_fraction, config.seed)
    requests = guard.clean_derived(_mixed(train, config, config.seed), train)
    problems = data_problems(config, requests, calibration)
    if problems:
        raise DataError("the data cannot carry what is asked of it:", problems)
    validation = _mixed(held, config, config.seed + 1, config.data.val_fraction)
    warm = [prompt_only(record) for record in requests if record.label]
    left_out: list[str] = []
    turns = on_side(spliced, train)
    answered = _paired(requests, train, turns, config, 1.0) if SFT in stages(config) else []
    checked = _paired(validation, held, on_side(spliced, held), config, config.data.val_fraction)
    data = TrainingData(
        train=_drawn(answered, renderer, config, 0, left_out, say),
        validation=_drawn(checked, renderer, config, 1, left_out, say),
        requests=requests,
        warm=_drawn(warm, renderer, config, 0, left_out, say),
        warm_answers=_warm_answers(requests, train, turns, renderer, config, say),
        calibration=calibration,
    )
    if DPO in stages(config):
        sides = (requests, train), (validation, held)
        data.pairs = prepare_pairs(config, renderer, example_settings(config), sides, calibration, guard)
    data.report = _report([*clean, *turns], guard.counts, data) | {"too_long": len(set(left_out))}
    for line in describe(data):
        say(line)
    if config.trainer.packing and data.train:
        n_examples, data.train = len(data.train), pack_examples(data.train, config.trainer.packing, config.seed)
        say(f"  packed: {n_examples} examples in {len(data.train)} rows of up to {config.trainer.packing} tokens")
    return data


def leak_guard(config: TrainConfig, encode: Encode | None, say: Say) -> LeakGuard:
    """The check against the evaluation sets that the config names."""
    check = config.data.leak_check
    if not check.enabled:
        say("leak check: switched off; figures on evaluation sets may be flattered")
    return LeakGuard(evaluation_prompts(config) if check.enabled else {}, check, encode)


def _drawn(
    records: Sequence[Record], renderer: Renderer, config: TrainConfig, side: int, left_out: list[str], say: Say
) -> Sequence[Example]:
    """Examples of the records whose prompt fits into `data.max_length`; the others' ids go to `left_out`."""
    examples, too_long = kept_examples(records, renderer, example_settings(config), config.seed + side, say)
    left_out += too_long
    return examples


def _mixed(records: Sequence[Record], config: TrainConfig, seed: int, share: float = 1.0) -> list[Record]:
    """The requests behind `records`, restyled and wrapped; `share` scales the counts (for validation)."""
    mix = config.data.mix
    scaled = {name: round(share * value) for name, value in asdict(mix).items() if name in _MIX_COUNTS}
    settings = MixSettings(**{**asdict(mix), **scaled})
    templates = load_templates(offline=config.offline) if settings.wrapped else ()
    return build_mix(distinct([_request(record) for record in records]), settings, seed, templates)


def _paired(
    requests: list[Record], records: Sequence[Record], spliced: Sequence[Record], config: TrainConfig, share: float
) -> list[Record]:
    """What the model is trained on: requests with and without answers, harmful answers, transitions."""
    data = config.data
    counts = {name: round(share * getattr(data, name)) for name in _PAIRING_COUNTS}
    paired = pair(requests, _harmful_answers(records), _pairing(config, counts), config.seed, spliced)
    random.Random(f"order/{config.seed}").shuffle(paired)
    return paired


def _warm_answers(
    requests: list[Record],
    records: Sequence[Record],
    spliced: Sequence[Record],
    renderer: Renderer,
    config: TrainConfig,
    say: Say,
) -> Sequence[Example]:
    """Answers of every kind, many more than the model is trained on, for the start of the windows' read-out."""
    n = config.data.warm_answers
    counts = {"harmful_answers": n, "benign_answers": n, "transitions": n // 2, "refusals": n // 4, "prompts": 0}
    pairing = replace(_pairing(config, counts), max_opening_words=_WARM_OPENING)
    beginnings = [_beginning(record) for record in requests]
    answers = pair(beginnings, [_beginning(r) for r in _harmful_answers(records)], pairing, config.seed, spliced)
    settings = replace(example_settings(config), windows_per_answer=_WARM_WINDOWS, recovery_share=0.0)
    return kept_examples(answers if n else [], renderer, settings, config.seed, say)[0]


def _beginning(record: Record) -> Record:
    """The record with the first words of its answer: a window sees ten tokens, and beginnings decide in time.

    Long answers stay whole: they are there for what windows see deep inside one.
    """
    words = (record.response or "").split(" ")
    if len(words) <= _WARM_WORDS or record.spans or (record.source or "").endswith(DEEP):
        return record
    answer = Message("assistant", " ".join(words[:_WARM_WORDS]))
    return replace(record, messages=(*record.prompt, answer), complete=False)


def _harmful_answers(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.response_label == MALICIOUS]


def _pairing(config: TrainConfig, counts: dict[str, int]) -> PairingSettings:
    return PairingSettings(config.safety.trigger, config.safety.refusal_categories, **counts)


_WARM_WORDS, _WARM_OPENING = 30, 8
_WARM_WINDOWS = 8  # of each answer: states of a row more or less cost nothing beside the answer's own
_MIX_COUNTS = ("per_style", "wrapped", "about", "homonyms", "intents", "people", "falsehoods", "later_turns")
_PAIRING_COUNTS = ("refusals", "benign_answers", "harmful_answers", "transitions", "prompts")


def _request(record: Record) -> Record:
    """A record as a request for the mix: a harmful answer stays behind."""
    return prompt_only(record) if record.response_label == MALICIOUS else record


def _report(records: Sequence[Record], leaks: dict[str, dict[str, int]], data: TrainingData) -> dict[str, Any]:
    examples = data.train if data.train or data.pairs.train else [*data.warm, *data.warm_answers]
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.input_ids, example.labels)).encode())
    for preference in data.pairs.train:
        digest.update(repr([side.input_ids for side in preference.sides]).encode())
    return {
        "records": dict(Counter(f"{r.source}/{r.label}" for r in records)),
        "self_made": dict(Counter(f"{r.source}/{r.response_label}" for r in records if r.sampled)),
        "leaks_left_out": leaks,
        "examples": {"train": len(data.train), "validation": len(data.validation)},
        "fitted": {"requests": len(data.warm), "answers": len(data.warm_answers)},
        "requests": dict(Counter(str(r.label) for r in data.requests)),
        "calibration_requests": dict(Counter(str(r.source) for r in data.calibration)),
        "pairs": data.pairs.report,
        "tokens": {
            "rows": sum(e.n_tokens for e in examples),
            "trained": sum(label != -100 for e in examples for label in e.labels),
        },
        "safety_rows": dict(
            Counter(
                f"{row.kind.name.lower()}/{row.label}"
                for e in [*examples, *(side for pair in data.pairs.train for side in pair.sides)]
                for row in e.layout.safety
            )
        ),
        "digest": digest.hexdigest()[:32],
    }


def describe(data: TrainingData) -> list[str]:
    """The data report in a few lines for the terminal."""
    report = data.report
    examples = (
        f"training data: {report['examples']['train']} examples, {report['tokens']['rows']:,} rows "
        f"({report['tokens']['trained']:,} trained), {report['examples']['validation']} for validation"
    )
    fitted = report["fitted"]
    head = f"the head's data: {fitted['requests']} requests, {fitted['answers']} answers"
    return [
        *([examples] if data.train else [] if report["pairs"] else [head]),
        *([_describe_pairs(report["pairs"])] if report["pairs"] else []),
        "  safety rows: " + ", ".join(f"{n} {name}" for name, n in sorted(report["safety_rows"].items())),
        *_self_made_lines(report["self_made"]),
        f"  held out for calibration: {sum(report['calibration_requests'].values())} benign requests",
        *([f"  left out, prompt longer than data.max_length: {report['too_long']}"] if report["too_long"] else []),
    ]


def _describe_pairs(pairs: dict[str, Any]) -> str:
    labels = ", ".join(f"{n} {label}" for label, n in sorted(pairs["labels"].items()))
    n = pairs["too_long"]
    left_out = f"; {n} left out, longer than data.max_length or alike once cut to it" if n else ""
    return (
        f"preference pairs: {pairs['train']} ({labels}), {pairs['rows']:,} rows, "
        f"{pairs['validation']} for validation{left_out}"
    )


def _self_made_lines(counts: Mapping[str, int]) -> list[str]:
    """How many records of each kind, and with which label of the answer, the undefended model wrote."""
    named = [f"{n} {name.replace(SAMPLED, '')}" for name, n in sorted(counts.items())]
    return ["  written by the undefended model: " + ", ".join(named)] if named else []
