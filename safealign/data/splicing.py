"""Answers that turn: the beginning of one, then another, with the turn at a known character and a known token.

Windows are judged by what is in them, so the head must see answers that begin well and go bad (spec 00 §2: a window
across the turn is malicious once half of it is), and answers that break off into something else that is harmless,
lest a break alone mean harm.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from safealign.data.records import BENIGN, MALICIOUS, LabelledSpan, Message, Record
from safealign.data.rendering import Renderer

# `source` of spliced records, and what stands in their ids between the record of the beginning and that of the rest.
SPLICED, _JOINT = "sampled_splices", "#splices:"
_SEPARATORS = (" ", " ", " ", "\n\n")
_SENTENCE_ENDS = (".", "!", "?", ":", "\n")
_TRIES = 8


def splice_all(
    openings: Sequence[Record],
    rests: Sequence[Record],
    n: int,
    renderer: Renderer,
    max_opening: int,
    rng: random.Random,
) -> list[Record]:
    """At most `n` spliced records, each pair of one of `openings` and one of `rests` once, all used alike."""
    found: list[Record] = []
    for first, second in _pairs(openings, rests, rng):
        if len(found) == n:
            break
        if donor(first) == donor(second):
            continue
        joined = splice(first, second, renderer, max_opening, rng)
        if joined is not None:
            found.append(joined)
    return found


def splice(
    first: Record, second: Record, renderer: Renderer, max_opening: int, rng: random.Random
) -> Record | None:
    """The first record's request and 1 to `max_opening` tokens of its answer, then the second's answer.

    Half the turns come at the end of a sentence where there is one. Both parts are spans with their record's
    label; the second begins with what separates them, at a token's first character. The language model is not to learn
    the answer. None where no place for the turn is found.
    """
    opening, rest = first.response or "", (second.response or "").strip()
    places = _places(first, renderer, max_opening)
    if not places or not rest:
        return None
    sentences = [at for at in places if opening[:at].rstrip().endswith(_SENTENCE_ENDS)]
    for _ in range(_TRIES):
        at = rng.choice(sentences if sentences and rng.random() < 0.5 else places)
        kept = opening[:at].rstrip()
        joined = _joined(first, second, kept, rng.choice(_SEPARATORS) + rest)
        if kept.strip() and turn_token(joined, renderer) is not None:
            return joined
    return None


def turn_token(record: Record, renderer: Renderer) -> int | None:
    """Index of the response's first token after the turn; None where a token reaches across it."""
    turn = record.spans[-1].start
    offsets = renderer.render(record.messages, close=False).offsets
    if any(start < turn < end for start, end in offsets):
        return None
    return next((i for i, (start, end) in enumerate(offsets) if start >= turn and end > start), None)


def donor(record: Record) -> str:
    """The family whose answer a record ends with: of a spliced one the second's."""
    return (record.id or "").split(_JOINT)[-1].split("#")[0]


def _places(record: Record, renderer: Renderer, max_opening: int) -> list[int]:
    """Characters at which the answer may be left: where one of its tokens begins, the first excepted."""
    offsets = renderer.render(record.messages, close=False).offsets
    starts = {start for start, end in offsets[1 : max_opening + 1] if end > start}
    return sorted(starts - {0})


def _joined(first: Record, second: Record, kept: str, rest: str) -> Record:
    text, label = kept + rest, second.response_label or BENIGN
    return Record(
        messages=(*first.prompt, Message("assistant", text)),
        label=first.label,
        response_label=label,
        spans=(LabelledSpan(0, len(kept), first.response_label or BENIGN), LabelledSpan(len(kept), len(text), label)),
        id=f"{first.id}{_JOINT}{second.id}",
        source=SPLICED,
        category="transition" if label == MALICIOUS else "splice",
        complete=False,
        learn=False,
    )


def _pairs(
    openings: Sequence[Record], rests: Sequence[Record], rng: random.Random
) -> Iterator[tuple[Record, Record]]:
    """Every pair once: each opening with a first partner, then each with a second, and so on."""
    firsts, seconds = (rng.sample(list(records), len(records)) for records in (openings, rests))
    for round_ in range(len(seconds)):
        yield from ((first, seconds[(at + round_) % len(seconds)]) for at, first in enumerate(firsts))
