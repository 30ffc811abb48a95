"""Checks files of millions of rows as they stream by: the faults of `validation`, in bounded memory.

Several processes share the work in parts of the files. Kept are counts, the first faults, and 8 bytes for each row that
has an id, by which repeated ids are found.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from safealign.data.parts_of_files import PART, Checked, Part, check_part, id_hash, parts_of
from safealign.data.sources import file_rows, files_of, renamed
from safealign.data.validation import Refused, repeated_id

KEPT = 1000  # faults that are told one by one

_LOGGER = logging.getLogger(__name__)
_Found = tuple[int, str]  # number of the row among all rows, and its fault


@dataclass
class Scan:
    """What was found in `rows` rows: `problems` as `find_problems` words them (the first of `n_problems`)."""

    rows: int = 0
    n_problems: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Rows per second."""
        return self.rows / max(self.seconds, 1e-9)


def scan(
    path: str | Path,
    fields: Mapping[str, str] | None = None,
    refused: Refused | None = None,
    kept: int = KEPT,
    processes: int = 1,
) -> Scan:
    """Checks every row of a file or folder (.jsonl, .parquet); at most `kept` faults are told.

    `fields` and `refused` as for `load_records`; the report is the same however many `processes` make it (from 2 on,
    `refused` must be one that another process can be given). Raises DataError for a folder without data files.
    """
    started = time.monotonic()
    files = files_of(Path(path).expanduser())
    parts = parts_of(files, PART)
    ids, result = bytearray(), Scan()
    found: list[_Found] = []
    check = partial(check_part, fields=fields or {}, refused=refused, kept=kept)
    for part, lines, checked in _placed(check, parts, processes):
        told = checked.faults[: kept - len(found)]
        found += [(result.rows + row, f"{part.path.name}:{lines + line}: {text}") for row, line, text in told]
        result.rows += checked.rows
        result.n_problems += checked.n_faults
        ids += checked.ids
    repeated, known = _repeated(files, fields or {}, np.frombuffer(ids, dtype=np.int64), kept)
    result.n_problems += known
    result.problems = [text for _, text in sorted([*found, *repeated], key=lambda item: item[0])[:kept]]
    result.seconds = time.monotonic() - started
    return result


def _placed(check: Callable[[Part], Checked], parts: list[Part], processes: int) -> Iterator[tuple[Part, int, Checked]]:
    """Each part, the number of its file's lines before it, and what was found in it."""
    lines = 0
    for part, found in zip(parts, _shared(check, parts, min(processes, len(parts))), strict=True):
        lines = lines if part.start else 0
        yield part, lines, found
        lines += found.lines


def _shared(check: Callable[[Part], Checked], parts: list[Part], processes: int) -> Iterator[Checked]:
    """What was found in each part, in their order; what the other processes leave undone is done here."""
    done = 0
    if processes > 1:
        # Not forked: this process may hold torch's threads, and locks of theirs.
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(processes, mp_context=context) as pool:
                for found in pool.map(check, parts):
                    done += 1
                    yield found
        except BrokenProcessPool:
            _LOGGER.warning("a process that helped to check was ended from outside; the rest is checked without help")
    yield from map(check, parts[done:])


def _repeated(
    files: list[Path], fields: Mapping[str, str], hashes: np.ndarray, kept: int
) -> tuple[list[_Found], int]:
    """The first `kept` rows whose id was used before, and how many there are; read again only if there are any."""
    ascending = np.sort(hashes)
    unique = not (ascending[1:] == ascending[:-1]).any()
    del ascending
    if unique:
        return [], 0
    order = np.argsort(hashes, kind="stable")
    again = order[1:][hashes[order[1:]] == hashes[order[:-1]]]  # places in the file, each not the first of its id
    wanted = {hashes[place].tobytes() for place in np.sort(again)[:kept]}
    found: list[_Found] = []
    seen: dict[str, str] = {}
    number = 0
    for path in files:
        for row in file_rows(path):
            number += 1
            made = renamed(row, fields)
            id_ = made.data.get("id") if isinstance(made.data, Mapping) else None
            if isinstance(id_, str) and id_hash(id_) in wanted and len(found) < kept:
                found += [(number, f"{made.where}: {fault}") for fault in repeated_id(made, seen)]
    return found, len(again) if len(again) > kept else len(found)
