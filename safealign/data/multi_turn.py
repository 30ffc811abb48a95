"""Requests of both labels as later turns, after a harmless exchange, so that a calm beginning says nothing.

A verdict that pools the whole conversation is diluted by what came before; one that never saw a second turn in
training is the easiest to dilute.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from safealign.data.records import BENIGN, LABELS, Record

_LONGEST = 240  # characters of an exchange that is put before a request: the whole must fit into a training example


def later_turns(sides: Mapping[str, Sequence[Record]], n: int, seed: int) -> list[Record]:
    """`n` requests of each label (fewer where there are not so many), each after another's question and answer.

    A derived record keeps label and answer, its id ends in `#later_turn`. Only single-turn records are used; without
    any short benign exchange there is nothing to put before them, and none is made.
    """
    rng = random.Random(f"later_turns/{seed}")
    exchanges = [record for record in sides[BENIGN] if _is_short_exchange(record)]
    if not exchanges:
        return []
    found = []
    for label in LABELS:
        single = [record for record in sides[label] if len(record.prompt) == 1]
        for record in rng.sample(single, min(n, len(single))):
            before = rng.choice([one for one in exchanges if one.request != record.request] or exchanges)
            messages = (*before.messages, *record.messages)
            found.append(replace(record, messages=messages, id=f"{record.id}#later_turn"))
    return found


def _is_short_exchange(record: Record) -> bool:
    calm = record.response is not None and record.response_label != "malicious" and record.complete
    return calm and len(record.messages) == 2 and sum(len(turn.content) for turn in record.messages) <= _LONGEST
