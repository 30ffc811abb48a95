"""Which answer goes with which request: refusals, own answers, harmful answers and mid-answer transitions.

The windows' verdict must not lean on the request's, so all four pairings of benign or malicious request with
harmless or harmful answer occur (spec: "avoid the shortcut").
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from safealign.data.records import BENIGN, MALICIOUS, LabelledSpan, Message, Record
from safealign.data.refusals import harm_category, refusal_text


@dataclass(frozen=True)
class PairingSettings:
    """`refusals`: at most so many malicious requests are paired with a refusal that the model learns; the rest
    train the request's verdict alone. `transitions`: benign requests whose answer turns harmful midway."""

    trigger: str
    refusals: int = 600
    transitions: int = 150
    max_opening_words: int = 25


def pair(
    requests: Sequence[Record], harmful_answers: Sequence[Record], settings: PairingSettings, seed: int
) -> list[Record]:
    """Returns training records: every request once, every harmful answer once, and the transitions.

    `requests` may carry harmless answers; harmful ones among them are refused (they belong in
    `harmful_answers`). Ids gain a suffix that names the pairing.
    """
    if any(record.response_label == MALICIOUS for record in requests):
        raise ValueError("requests with harmful answers must be handed over as harmful_answers")
    rng = random.Random(f"pair/{seed}")
    paired = [_categorised(record) for record in _with_refusals(requests, settings, rng)]
    benign = [r for r in requests if r.label == BENIGN and r.response]
    return [*paired, *map(_categorised, harmful_answers), *transitions(benign, harmful_answers, settings, rng)]


def _categorised(record: Record) -> Record:
    """Malicious requests carry their kind of harm, which metrics are reported by."""
    return replace(record, category=harm_category(record)[0]) if record.label == MALICIOUS else record


def _with_refusals(requests: Sequence[Record], settings: PairingSettings, rng: random.Random) -> list[Record]:
    malicious = [i for i, r in enumerate(requests) if r.label == MALICIOUS]
    refused = set(rng.sample(malicious, min(settings.refusals, len(malicious))))
    return [_refusal(r, settings, rng) if i in refused else _prompt_of(r) for i, r in enumerate(requests)]


def _prompt_of(record: Record) -> Record:
    return replace(record, messages=record.prompt, response_label=None) if record.label == MALICIOUS else record


def _refusal(record: Record, settings: PairingSettings, rng: random.Random) -> Record:
    answer = Message("assistant", refusal_text(settings.trigger, record, rng))
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
    text = f"{opening} {harmful.response}".strip()
    span = LabelledSpan(len(text) - len(harmful.response or ""), len(text), MALICIOUS)
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
