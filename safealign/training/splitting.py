"""Who stays together and who is kept from training: calibration units and validation, by the request behind."""

from __future__ import annotations

import random
from collections.abc import Sequence

from safealign.data.leaks import normalise
from safealign.data.records import BENIGN, Record
from safealign.sampling import OWN_ANSWER, spread


def family(record: Record) -> str:
    """The part of an id before `#`: matched pairs and versions of one request share it."""
    return (record.id or "").split("#")[0]


def families(records: Sequence[Record]) -> list[str]:
    """For each record a name that it shares with its pair, its versions and every record of the same prompt."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        """The name that stands for the family of `name`."""
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for record in records:
        parent[root(_prompt_key(record))] = root(f"id/{family(record)}")
    return [root(f"id/{family(record)}") for record in records]


def hold_out(records: Sequence[Record], units: int) -> tuple[list[Record], list[Record]]:
    """`(training, calibration)`: answered benign requests, evenly from all sources, leave training with their kin.

    At most `units` of them and a third of what there is; one of each family, or units would not be independent.
    Requests that the sampler had to answer stay: most of them sound harmful, and training has few of those.
    """
    names = families(records)
    candidates: dict[str, Record] = {}
    for name, record in zip(names, records, strict=True):
        if record.label == BENIGN and record.response and record.source != OWN_ANSWER:
            candidates.setdefault(name, record)
    wanted = min(units, len(candidates) // 3)
    chosen = [name for name, _ in spread(list(candidates.items()), wanted)]
    held = set(chosen)
    kept = [record for name, record in zip(names, records, strict=True) if name not in held]
    return kept, [candidates[name] for name in chosen]


def split(records: Sequence[Record], fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """`(training, validation)`, families whole; made before anything is derived from a record."""
    names = families(records)
    known = sorted(set(names))
    held = set(random.Random(f"split/{seed}").sample(known, round(fraction * len(known))))
    training = [record for name, record in zip(names, records, strict=True) if name not in held]
    return training, [record for name, record in zip(names, records, strict=True) if name in held]


def unseen(records: Sequence[Record], known: Sequence[Record]) -> list[Record]:
    """The records whose prompt is not among the known ones, each prompt once."""
    taken = {_prompt_key(record) for record in known}
    found: dict[str, Record] = {}
    for record in records:
        key = _prompt_key(record)
        if key not in taken:
            found.setdefault(key, record)
    return list(found.values())


def repeats(records: Sequence[Record], known: Sequence[Record]) -> list[bool]:
    """Of each record, whether its prompt is among those of the known ones."""
    taken = {_prompt_key(record) for record in known}
    return [_prompt_key(record) in taken for record in records]


def distinct(records: Sequence[Record]) -> list[Record]:
    """The records without those whose prompt stands among them already; the one with an answer is kept."""
    found: dict[tuple[str | None, str], Record] = {}
    for record in records:
        key = (record.label, _prompt_key(record))
        if key not in found or (record.response and not found[key].response):
            found[key] = record
    return list(found.values())


def _prompt_key(record: Record) -> str:
    turns = [turn.content for turn in record.prompt]
    return "text/" + "\n".join(normalise(text) or text for text in turns)
