"""The records that training starts from: every configured source, checked, each row with an id of its own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

from safealign.config.groups import SourceConfig
from safealign.config.roots import TrainConfig
from safealign.data.parts import take_part
from safealign.data.records import BENIGN, MALICIOUS, Record
from safealign.data.scanning import scan
from safealign.data.sources import files_of, known_sources, load_records
from safealign.data.validation import find_problems
from safealign.errors import AssetError, DataError
from safealign.judges.refusal import RefusalMatcher
from safealign.training.splitting import family

_CROWD = 10  # records from which on one family may not hold most of the data


_CALIBRATION_CHARACTERS = 600
LARGE = 256 * 2**20  # bytes of a source from which on a look at it does not hold all of it
HEAD = 20_000  # rows that are looked at further
Say = Callable[[str], None]


def load_sources(config: TrainConfig) -> list[Record]:
    """Every record of every source; raises DataError that lists all bad rows of all of them."""
    records, problems = collect_sources(config)
    if problems:
        raise DataError(f"the training data has {len(problems)} fault(s) and nothing of it was used:", problems)
    return records


def collect_sources(config: TrainConfig, say: Say | None = None) -> tuple[list[Record], list[str]]:
    """The records of the sources that can be read, and every problem of all sources, one line each.

    With `say`, a large file is checked as it streams by, and only its first rows are kept and looked at further.
    """
    records: list[Record] = []
    problems: list[str] = []
    for source in config.data.sources:
        try:
            large = say is not None and is_large(source.source)
            if large and (found := _scanned(source, say)):
                problems += found
                continue
            records += load_source(source, config.offline, HEAD if large else None)
        except DataError as error:
            problems += error.problems or [str(error)]
        except AssetError as error:
            problems.append(f"data.sources: {error}")
    records = _named(records)
    return records, problems + find_problems(records) + _crowds(records)


def calibration_only(config: TrainConfig) -> list[Record]:
    """Benign requests of `data.calibration`, without answers; those that carry whole documents are left out."""
    records = [prompt_only(r) for source in config.data.calibration for r in load_source(source, config.offline)]
    return [r for r in records if r.label == BENIGN and r.prompt_characters <= _CALIBRATION_CHARACTERS]


def is_large(source: str) -> bool:
    """Is this a file, or a folder of files, too large to be held in memory for a look?"""
    path = Path(source).expanduser()
    return path.exists() and sum(file.stat().st_size for file in files_of(path)) > LARGE


def _cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _scanned(source: SourceConfig, say: Say | None) -> list[str]:
    """The faults of a large source, read to its end in bounded memory; says how it went."""
    found = scan(source.source, source.fields, RefusalMatcher().refused, processes=_cores())
    if say is not None:
        say(f"{source.source}: {found.rows:,} rows checked in {found.seconds:.1f} s ({found.rate:,.0f} rows/s)")
        if not found.n_problems:
            say(f"  what follows rests on its first {min(HEAD, found.rows):,} rows")
    untold = found.n_problems - len(found.problems)
    return [*found.problems, *([f"{source.source}: {untold:,} more faults"] if untold else [])]


def load_source(source: SourceConfig, offline: bool, head: int | None = None) -> list[Record]:
    """The records of one source: its part, then at most `limit` of them. `head`: read so many rows at most."""
    refused = RefusalMatcher().refused
    known = source.source in known_sources()
    records = load_records(
        source.source,
        split=source.split,
        fields=source.fields,
        label=source.label,
        refused=None if known else refused,
        offline=offline,
        head=head,
    )
    if known:  # a pinned data set cannot be corrected by the user: what is at odds keeps its prompt only
        records = [prompt_only(r) if _at_odds(r, refused) else r for r in records]
    return take_part(records, source.part, source.source)[: source.limit]


def prompt_only(record: Record) -> Record:
    """The record without its answer and what was known of it."""
    return replace(record, messages=record.prompt, response_label=None, spans=(), complete=True)


def _at_odds(record: Record, refused: Callable[[str], bool]) -> bool:
    """A refusal where an answer was promised: labelled harmful, or given to a benign request."""
    answered = record.response_label == MALICIOUS or record.label == BENIGN
    return answered and refused(record.response or "")


def _named(records: Sequence[Record]) -> list[Record]:
    """Rows without an id are called by their place, or what is derived from them could not be told apart."""
    taken = {record.id for record in records}
    found = []
    for number, record in enumerate(records):
        if not record.id:
            name = (record.where or f"{record.source}:{number}").replace("#", "_")
            record = replace(record, id=free_name(name, taken) if name in taken else name)
            taken.add(record.id)
        found.append(record)
    return found


def free_name(name: str, taken: Collection[str | None]) -> str:
    """`name` with the first number that makes it one that is not taken."""
    return next(found for n in count(1) if (found := f"{name}~{n}") not in taken)


def _crowds(records: Sequence[Record]) -> list[str]:
    """Ids are split at `#`: what shares the part before it is one request's versions and stays together."""
    counts = Counter(family(record) for record in records if "#" in (record.id or ""))
    return [
        f"{n} of {len(records)} rows have ids that begin with {name!r} before a '#', which marks versions of one "
        "request (they stay on one side of every split): write the ids of unrelated rows without '#'"
        for name, n in counts.items()
        if n >= _CROWD and 2 * n > len(records)
    ]
