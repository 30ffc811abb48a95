"""Preference pairs of a run: the user's own and those made of its records, kept apart as the records are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from safealign.config.roots import TrainConfig
from safealign.data.preference_pairs import PairSettings, build_pairs
from safealign.data.preferences import Preference, load_preferences
from safealign.data.records import BENIGN, MALICIOUS, Record
from safealign.data.rendering import Renderer
from safealign.errors import AssetError, DataError
from safealign.judges.refusal import RefusalMatcher
from safealign.training.examples import ExampleSettings
from safealign.training.leaking import LeakGuard
from safealign.training.pair_examples import PairExample, build_pair_examples
from safealign.training.sources import free_name
from safealign.training.splitting import repeats, split


@dataclass
class Pairs:
    """Preference pairs to train on and to validate on; `report` counts them."""

    train: list[PairExample] = field(default_factory=list)
    validation: list[PairExample] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)


def collect_preferences(config: TrainConfig) -> tuple[list[Preference], list[str]]:
    """The pairs of `data.preferences.sources` that can be read, and every problem, one line each."""
    found: list[Preference] = []
    problems: list[str] = []
    refused = RefusalMatcher(config.safety.trigger).refused
    for source in config.data.preferences.sources:
        options = {"split": source.split, "fields": source.fields, "label": source.label, "offline": config.offline}
        try:
            found += load_preferences(source.source, refused, **options)[: source.limit]  # type: ignore[arg-type]
        except DataError as error:
            problems += error.problems or [str(error)]
        except AssetError as error:
            problems.append(f"data.preferences.sources: {error}")
    return _named_apart(found), problems


def _named_apart(preferences: Sequence[Preference]) -> list[Preference]:
    """Two sources may use the same ids: the later ones get a number, and no name that another has."""
    taken, met = {preference.id for preference in preferences}, set[str]()
    found = []
    for preference in preferences:
        if preference.id in met:
            preference = replace(preference, id=free_name(preference.id, taken))
            taken.add(preference.id)
        met.add(preference.id)
        found.append(preference)
    return found


def prepare_pairs(
    config: TrainConfig,
    renderer: Renderer,
    settings: ExampleSettings,
    sides: tuple[tuple[Sequence[Record], Sequence[Record]], tuple[Sequence[Record], Sequence[Record]]],
    calibration: Sequence[Record],
    guard: LeakGuard,
) -> Pairs:
    """Pairs for training and validation; `sides` are `(requests, records)` of each, from which pairs are made.

    The user's own pass the leak check, must not repeat a calibration unit, and go to validation with their prompt.
    Raises DataError for faulty rows and where no pair is left.
    """
    own, problems = collect_preferences(config)
    if problems:
        raise DataError(f"the preference data has {len(problems)} fault(s) and nothing of it was used:", problems)
    (requests, records), (held_requests, held) = sides
    kept, kept_held = _own_sides(own, config, records, held, calibration, guard)
    share = config.data.val_fraction
    train = [*kept, *_made(requests, records, config, 1.0, config.seed)]
    validation = [*kept_held, *_made(held_requests, held, config, share, config.seed + 1)]
    pairs = Pairs(
        build_pair_examples(train, renderer, settings, config.seed),
        build_pair_examples(validation, renderer, settings, config.seed + 1),
    )
    if not pairs.train:
        raise DataError(
            "no preference pair is left to train on: raise data.preferences.refusals and answers, give pairs of your "
            "own in data.preferences.sources, or raise data.max_length"
        )
    pairs.report = _report(train, validation, pairs)
    return pairs


def _made(
    requests: Sequence[Record], records: Sequence[Record], config: TrainConfig, share: float, seed: int
) -> list[Preference]:
    counts = config.data.preferences
    settings = PairSettings(
        config.safety.trigger,
        config.safety.refusal_categories,
        round(share * counts.refusals),
        round(share * counts.answers),
    )
    harmful = [record for record in records if record.response_label == MALICIOUS]
    return build_pairs(requests, harmful, RefusalMatcher(config.safety.trigger).refused, settings, seed)


def _own_sides(
    own: Sequence[Preference],
    config: TrainConfig,
    records: Sequence[Record],
    held: Sequence[Record],
    calibration: Sequence[Record],
    guard: LeakGuard,
) -> tuple[list[Preference], list[Preference]]:
    """The user's pairs for training and for validation; a prompt stays on the side where records have it already."""
    by_id = {preference.id: preference for preference in own}
    clean = guard.clean([preference.sides[0] for preference in own])
    clean = [record for record, spent in zip(clean, repeats(clean, calibration), strict=True) if not spent]
    in_train, in_held = repeats(clean, records), repeats(clean, held)
    new = [r for r, one, other in zip(clean, in_train, in_held, strict=True) if not one and not other]
    train, validation = split(new, config.data.val_fraction, config.seed)
    train += [record for record, known in zip(clean, in_train, strict=True) if known]
    validation += [r for r, one, other in zip(clean, in_train, in_held, strict=True) if other and not one]
    return [by_id[str(record.id)] for record in train], [by_id[str(record.id)] for record in validation]


def _report(train: Sequence[Preference], validation: Sequence[Preference], pairs: Pairs) -> dict[str, Any]:
    return {
        "train": len(pairs.train),
        "validation": len(pairs.validation),
        "labels": dict(Counter(_label(pair) for pair in pairs.train)),
        "sources": dict(Counter(str(preference.source) for preference in train)),
        "too_long": len(train) + len(validation) - len(pairs.train) - len(pairs.validation),
        "rows": sum(pair.n_tokens for pair in pairs.train),
    }


def _label(pair: PairExample) -> str:
    """What the request's verdict is trained towards."""
    return MALICIOUS if pair.chosen.layout.safety[0].label else BENIGN
