"""Which answer goes with which request: refusals, own answers, harmful answers and mid-answer transitions.

The windows' verdict must not lean on the request's, so all four pairings of benign or malicious request with
harmless or harmful answer occur (spec: "avoid the shortcut").
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from safealign.data.parts import interleave
from safealign.data.records import BENIGN, MALICIOUS, LabelledSpan, Message, Record
from safealign.data.refusals import harm_category, refusal_text


@dataclass(frozen=True)
class PairingSettings:
    """How many training records of each kind there are at most.

    `refusals`: malicious requests paired with a refusal that the model learns; `name_category`: the refusal says
    what kind of harm. `benign_answers`: benign requests that keep their answer. `harmful_answers`: answers that
    train windows. `transitions`: benign requests whose answer turns harmful midway. `prompts`: further requests
    without an answer, both labels alike, which train the request's verdict.
    """

    trigger: str
    name_category: bool = True
    refusals: int = 250
    benign_answers: int = 350
    harmful_answers: int = 250
    transitions: int = 100
    prompts: int = 600
    max_opening_words: int = 25


def pair(
    requests: Sequence[Record],
    harmful_answers: Sequence[Record],
    settings: PairingSettings,
    seed: int,
    spliced: Sequence[Record] = (),
) -> list[Record]:
    """Returns training records of every kind, each request and each harmful answer at most once.

    `requests` may carry harmless answers; harmful ones among them are refused (they belong in
    `harmful_answers`). Unlabelled chat keeps its answers. Ids gain a suffix that names the pairing. `spliced` are
    answers that turn, made beforehand: transitions are taken from the harmful ones among them first, and as many of
    the harmless ones join them.
    """
    if any(record.response_label == MALICIOUS for record in requests):
        raise ValueError("requests with harmful answers must be handed over as harmful_answers")
    rng = random.Random(f"pair/{seed}")
    malicious = _shuffled((r for r in requests if r.label == MALICIOUS), rng)
    answered = _source_by_source(_shuffled((r for r in requests if r.label == BENIGN and r.response), rng))
    silent = _shuffled((r for r in requests if r.label == BENIGN and not r.response), rng)
    harmful = _shuffled(harmful_answers, rng)[: settings.harmful_answers]
    kept = answered[: settings.benign_answers]
    found = [_refusal(record, settings, rng) for record in malicious[: settings.refusals]]
    found += [record for record in requests if record.label is None and record.response]
    found += _prompts(malicious[settings.refusals :], settings.prompts // 2)
    found += _prompts(_shuffled([*silent, *answered[settings.benign_answers :]], rng), settings.prompts // 2)
    turning, breaking = _turns(spliced, settings, rng)
    more = replace(settings, transitions=settings.transitions - len(turning))
    found += [*kept, *harmful, *turning, *breaking, *transitions(kept, harmful, more, rng)]
    return [_categorised(record) for record in found]


def _turns(
    spliced: Sequence[Record], settings: PairingSettings, rng: random.Random
) -> tuple[list[Record], list[Record]]:
    """Of the answers that turn harmful, and of those that merely break, as many as there may be transitions."""
    drawn = _shuffled(spliced, rng)
    harmful = [record for record in drawn if record.response_label == MALICIOUS]
    harmless = [record for record in drawn if record.response_label != MALICIOUS]
    return harmful[: settings.transitions], harmless[: settings.transitions]


def _shuffled(records: Iterable[Record], rng: random.Random) -> list[Record]:
    chosen = list(records)
    rng.shuffle(chosen)
    return chosen


def _source_by_source(records: Sequence[Record]) -> list[Record]:
    """The records in turn from each source, so that answers to requests that sound harmful are among the first."""
    by_source: dict[str | None, list[Record]] = {}
    for record in records:
        by_source.setdefault(record.source, []).append(record)
    return interleave(list(by_source.values()))


def _categorised(record: Record) -> Record:
    """Malicious requests carry their kind of harm, which metrics are reported by."""
    return replace(record, category=harm_category(record)[0]) if record.label == MALICIOUS else record


def _prompts(records: Sequence[Record], n: int) -> list[Record]:
    """The first n as prompts alone."""
    return [replace(record, messages=record.prompt, response_label=None, complete=True) for record in records[:n]]


def _refusal(record: Record, settings: PairingSettings, rng: random.Random) -> Record:
    text = refusal_text(settings.trigger, record, rng, settings.name_category)
    answer = Message("assistant", text)
    return replace(
        record, id=f"{record.id}#refusal", messages=(*record.prompt, answer), response_label=BENIGN, complete=True
    )


def transitions(
    benign: Sequence[Record], harmful_answers: Sequence[Record], settings: PairingSettings, rng: random.Random
) -> list[Record]:
    """Benign requests whose own answer, after some words, goes on with a harmful one (span-labelled)."""
    if not benign or not harmful_answers:
        return []
    drawn = rng.sample(list(benign), min(settings.transitions, len(benign)))
    return [_transition(record, rng.choice(list(harmful_answers)), settings, rng) for record in drawn]


def _transition(record: Record, harmful: Record, settings: PairingSettings, rng: random.Random) -> Record:
    words = (record.response or "").split(" ")
    kept = rng.randint(0, min(settings.max_opening_words, len(words) - 1))
    opening = " ".join(words[:kept])
    harm = (harmful.response or "").strip()
    text = f"{opening} {harm}".strip()
    span = LabelledSpan(len(text) - len(harm), len(text), MALICIOUS)
    return Record(
        messages=(*record.prompt, Message("assistant", text)),
        label=BENIGN,
        response_label=MALICIOUS,
        spans=(span,),
        id=f"{record.id}#turns:{harmful.id}",
        source=record.source,
        category="transition",
        complete=False,
    )
