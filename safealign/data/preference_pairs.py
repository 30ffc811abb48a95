"""Preference pairs from the records at hand: a refusal before a harmful answer, help before a needless refusal.

Both sorts, or the model learns that refusing is what is preferred.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from safealign.data.parts import interleave
from safealign.data.preferences import Preference
from safealign.data.records import BENIGN, MALICIOUS, Record
from safealign.data.refusals import harm_category, names_harm, refusal_text


@dataclass(frozen=True)
class PairSettings:
    """How many pairs of each sort there are at most, and how refusals are worded.

    `refusals`: malicious requests whose harmful answer is rejected for a refusal. `answers`: benign requests whose
    own answer is preferred to a refusal; every other one is a request that names harm, as far as there are any.
    """

    trigger: str
    name_category: bool = True
    refusals: int = 300
    answers: int = 300


def build_pairs(
    requests: Sequence[Record],
    harmful_answers: Sequence[Record],
    refused: Callable[[str], bool],
    settings: PairSettings,
    seed: int,
) -> list[Preference]:
    """Pairs of both sorts, shuffled; each request and each harmful answer is used at most once.

    `requests`: benign ones count if they carry a harmless answer that does not refuse. `harmful_answers`: answers to
    malicious requests; those to benign ones are left out, since no refusal is due there.
    """
    rng = random.Random(f"pairs/{seed}")
    harmful = [r for r in harmful_answers if r.label == MALICIOUS and r.response and not refused(r.response)]
    helpful = [r for r in requests if r.label == BENIGN and _is_help(r, refused)]
    found = [_refusal_first(record, settings, rng) for record in _by_source(harmful, rng)[: settings.refusals]]
    found += [_help_first(record, settings, rng) for record in _edgy_first(helpful, rng)[: settings.answers]]
    rng.shuffle(found)
    return found


def _is_help(record: Record, refused: Callable[[str], bool]) -> bool:
    harmless = record.response_label != MALICIOUS and not record.spans
    return bool(record.response) and harmless and not refused(record.response or "")


def _by_source(records: Sequence[Record], rng: random.Random) -> list[Record]:
    """Shuffled, the sources in turn, so that a few hundred pairs hold something of each."""
    queues: dict[str | None, list[Record]] = {}
    for record in rng.sample(list(records), len(records)):
        queues.setdefault(record.source, []).append(record)
    return interleave(list(queues.values()))


def _edgy_first(records: Sequence[Record], rng: random.Random) -> list[Record]:
    """Requests that name harm and others in turn: over-refusal shows in the former."""
    edgy = [record for record in records if names_harm(record.request)]
    calm = [record for record in records if not names_harm(record.request)]
    return interleave([_by_source(edgy, rng), _by_source(calm, rng)])


def _refusal_first(record: Record, settings: PairSettings, rng: random.Random) -> Preference:
    return Preference(
        prompt=record.prompt,
        chosen=refusal_text(settings.trigger, record, rng, settings.name_category),
        rejected=record.response or "",
        label=MALICIOUS,
        rejected_label=MALICIOUS,
        id=f"{record.id}#preferred",
        source=record.source,
        category=harm_category(record)[0],
        where=record.where,
        rejected_complete=record.complete,
    )


def _help_first(record: Record, settings: PairSettings, rng: random.Random) -> Preference:
    return Preference(
        prompt=record.prompt,
        chosen=record.response or "",
        rejected=refusal_text(settings.trigger, record, rng, settings.name_category),
        label=BENIGN,
        rejected_label=BENIGN,
        id=f"{record.id}#preferred",
        source=record.source,
        category=record.category,
        where=record.where,
        chosen_complete=record.complete,
    )
