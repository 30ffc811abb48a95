"""The training mix: requests of both labels, restyled, contrasted and wrapped; neither label has a style.

Deterministic in (records, settings, seed). Every derived record says in its id where it comes from:
`adv12#past_tense`, `alp7#wrapped:generic/json`, `alp7#intent`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from safealign.data import contrast
from safealign.data.multi_turn import later_turns
from safealign.data.records import BENIGN, LABELS, MALICIOUS, Message, Record
from safealign.data.styles import STYLES, restyle
from safealign.data.wrapping import Template, generic_templates, split, wrap_both
from safealign.errors import ConfigError

# In these forms the original answer is still an answer; in the others (a story, a letter, …) it is dropped.
_SAME_ANSWER = frozenset(
    ("question", "first_person", "polite", "role", "purpose", "casual", "typos", "casing")
)


@dataclass(frozen=True)
class MixSettings:
    """How many derived records of each kind the mix holds; 0 leaves a kind out.

    `styles` None means all; `per_style`, `wrapped`, `falsehoods` and `later_turns` count for each label; `about` and
    `homonyms` are benign, `intents` and `people` malicious contrasts. `wrapper_words` cuts long templates
    around the request (None: never). `restyle_max_chars` keeps long requests out of the restylings.
    `balance` restyles further requests of the label that has fewer; without it, weigh the loss instead,
    since then no style leans to a label. `limit` is the most records of one label, drawn in equal shares
    from all kinds. `held_out_templates` is the share of templates that training never sees.
    """

    styles: tuple[str, ...] | None = None
    per_style: int = 20
    wrapped: int = 300
    wrapper_words: int | None = 70
    held_out_templates: float = 0.3
    about: int = 20
    homonyms: int = 40
    intents: int = 40
    people: int = 40
    falsehoods: int = 40
    later_turns: int = 0
    restyle_max_chars: int = 300
    balance: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.styles or () if name not in STYLES]
        if unknown:
            raise ConfigError(f"data.mix.styles: unknown {', '.join(unknown)}; known are {', '.join(STYLES)}")
        derived = (self.about, self.homonyms, self.intents, self.people, self.falsehoods, self.later_turns)
        counts = (self.per_style, self.wrapped, *derived)
        if min(counts) < 0:
            raise ConfigError("data.mix: counts must not be negative; 0 leaves a kind out")


def build_mix(
    records: Sequence[Record], settings: MixSettings, seed: int, templates: Sequence[Template] = ()
) -> list[Record]:
    """Return `records` and what the rules make of them, shuffled.

    `records` without a request label (plain chat) pass through untouched. `templates` are the jailbreak
    templates at hand; the generic ones are added, and only those on the training side of the split are used.
    A derived record keeps its label, and its answer where that still is an answer.
    """
    sides = {label: [r for r in records if r.label == label] for label in LABELS}
    restyled = _even_styles({label: _restyled(sides[label], settings, f"{seed}/{label}") for label in LABELS})
    derived = restyled + _contrasts(sides, settings, seed)
    usable, _ = split((*templates, *generic_templates()), settings.held_out_templates)
    to_wrap = {label: sides[label] + [r for r in restyled if r.label == label] for label in LABELS}
    derived += wrap_both(
        to_wrap[MALICIOUS], to_wrap[BENIGN], usable, settings.wrapped, settings.wrapper_words, seed
    )
    derived += later_turns(to_wrap, settings.later_turns, seed)
    if settings.balance:
        derived += _topped_up([*records, *derived], sides, settings, seed)
    return _finished([*records, *derived], settings.limit, seed)


def mix_counts(records: Sequence[Record]) -> dict[str, dict[str, int]]:
    """Kind → label → number of records, for the log; kind is what the id says, or `as_is`."""
    table: dict[str, Counter[str]] = {}
    for record in records:
        table.setdefault(kind_of(record), Counter())[record.label or "unlabelled"] += 1
    return {kind: dict(sorted(counts.items())) for kind, counts in sorted(table.items())}


def kind_of(record: Record) -> str:
    """How a record came about: the name of the last rule in its id, or `as_is`."""
    name = (record.id or "").rpartition("#")[2] if "#" in (record.id or "") else "as_is"
    return name.partition(":")[0]


def _restyled(records: Sequence[Record], settings: MixSettings, seed: str) -> dict[str, list[Record]]:
    rng = random.Random(f"restyle/{seed}")
    found: dict[str, list[Record]] = {}
    for style in settings.styles or tuple(STYLES):
        found[style] = []
        for record in rng.sample(list(records), len(records)):
            if len(found[style]) == settings.per_style:
                break
            if (new := _in_style(record, style, settings, seed)) is not None:
                found[style].append(new)
    return found


def _in_style(record: Record, style: str, settings: MixSettings, seed: str) -> Record | None:
    text = record.request
    styled = restyle(text, style, seed) if len(text) <= settings.restyle_max_chars else None
    if styled is None or styled == text:
        return None
    at = max(i for i, turn in enumerate(record.messages) if turn.role == "user")
    messages = (*record.messages[:at], Message("user", styled), *record.messages[at + 1 :])
    kept = replace(record, messages=messages, id=f"{record.id}#{style}")
    return kept if style in _SAME_ANSWER else _without_answer(kept)


def _without_answer(record: Record) -> Record:
    return replace(record, messages=record.prompt, response_label=None, spans=(), complete=True)


def _even_styles(restyled: dict[str, dict[str, list[Record]]]) -> list[Record]:
    """As many restylings of one label as of the other in each style: a style must not predict the label."""
    found: list[Record] = []
    for style in restyled[BENIGN]:
        n = min(len(restyled[label][style]) for label in LABELS)
        found += [record for label in LABELS for record in restyled[label][style][:n]]
    return found


def _contrasts(sides: dict[str, list[Record]], settings: MixSettings, seed: int) -> list[Record]:
    return [
        *contrast.about_harm(sides[MALICIOUS], settings.about, seed),
        *contrast.with_intent(sides[BENIGN], settings.intents, seed),
        *contrast.homonyms(settings.homonyms, seed),
        *contrast.against_people(settings.people, seed),
        *contrast.falsehoods(settings.falsehoods, seed),
    ]


def _topped_up(
    records: Sequence[Record], sides: dict[str, list[Record]], settings: MixSettings, seed: int
) -> list[Record]:
    """Further restylings of the label that has fewer records, until both have as many or rules run out."""
    count = Counter(record.label for record in records)
    label = min(LABELS, key=lambda name: count[name])
    short = max(count[name] for name in LABELS) - count[label]
    rng = random.Random(f"balance/{seed}")
    taken = {record.request for record in records}
    found: list[Record] = []
    for round_ in range(3):
        for record in rng.sample(sides[label], len(sides[label])):
            if len(found) == short:
                return found
            style = rng.choice(settings.styles or tuple(STYLES))
            new = _in_style(record, style, settings, f"{seed}/balance{round_}")
            if new is not None and new.request not in taken:
                taken.add(new.request)
                found.append(replace(new, id=f"{record.id}@{round_ + 1}#{style}"))
    return found


def _finished(records: Sequence[Record], limit: int | None, seed: int) -> list[Record]:
    """Shuffle; with a limit, draw from the kinds of each label in turn until it is full."""
    rng = random.Random(f"order/{seed}")
    shuffled = rng.sample(list(records), len(records))
    if limit is not None:
        shuffled = [record for label in (*LABELS, None) for record in _drawn(shuffled, label, limit)]
        rng.shuffle(shuffled)
    return shuffled


def _drawn(records: Sequence[Record], label: str | None, limit: int) -> list[Record]:
    queues: dict[str, list[Record]] = {}
    for record in records:
        if record.label == label:
            queues.setdefault(kind_of(record), []).append(record)
    if label is None:
        return [record for queue in queues.values() for record in queue]
    found: list[Record] = []
    while len(found) < limit and any(queues.values()):
        for queue in queues.values():
            if queue and len(found) < limit:
                found.append(queue.pop())
    return found
