"""Checks files of millions of rows as they stream by: the faults of `validation`, in bounded memory.

Kept are counts, the first faults, and 8 bytes for each row that has an id, by which repeated ids are found.
"""

from __future__ import annotations

import json
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from safealign.data.sources import file_rows, files_of, jsonl_row, renamed
from safealign.data.validation import Refused, Row, is_sound, repeated_id, row_faults

KEPT = 1000  # faults that are told one by one

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
    path: str | Path, fields: Mapping[str, str] | None = None, refused: Refused | None = None, kept: int = KEPT
) -> Scan:
    """Checks every row of a file or folder (.jsonl, .parquet); at most `kept` faults are told.

    `fields` and `refused` as for `load_records`. Raises DataError for a folder without data files.
    """
    started = time.monotonic()
    files = files_of(Path(path).expanduser())
    ids, result = array("q"), Scan()
    found: list[_Found] = []
    for row, faults in _checked(files, fields or {}, refused, ids, result):
        result.n_problems += len(faults)
        if len(found) < kept:
            found += [(result.rows, f"{row.where}: {fault}") for fault in faults]
    repeated, known = _repeated(files, fields or {}, ids, kept)
    result.n_problems += known
    result.problems = [text for _, text in sorted([*found, *repeated], key=lambda item: item[0])[:kept]]
    result.seconds = time.monotonic() - started
    return result


def _checked(
    files: list[Path], fields: Mapping[str, str], refused: Refused | None, ids: array[int], result: Scan
) -> Iterator[tuple[Row, list[str]]]:
    """The rows with faults of their own; counts all rows in `result` and notes the ids' hashes."""
    for path in files:
        plain = path.suffix == ".jsonl" and not fields
        for data, readable, make in _quick_rows(path) if plain else _other_rows(path, fields):
            result.rows += 1
            if type(data) is dict and type(id_ := data.get("id")) is str:
                ids.append(hash(id_))
            if not (readable and is_sound(data, refused)):
                row = make()
                faults = row_faults(row, refused)
                if faults:
                    yield row, faults


def _quick_rows(path: Path) -> Iterator[tuple[Any, bool, Callable[[], Row]]]:
    """Each line's data, whether it could be read, and how to make the row of it: an ordinary one is never made."""
    loads = json.loads
    with path.open("rb", buffering=1 << 20) as file:
        for number, line in enumerate(file, start=1):
            try:
                data = loads(line.decode())
            except ValueError:  # blank, a byte-order mark, or a fault
                row = jsonl_row(line, f"{path.name}:{number}")
                if row is None:
                    continue
                data = row.data
            if type(data) is dict and "messages" not in data:
                data = renamed(Row("", data), {}).data
            yield data, True, _Maker(path, number, line)


class _Maker:
    """Makes the row of a line when it is asked for."""

    __slots__ = ("line", "number", "path")

    def __init__(self, path: Path, number: int, line: bytes) -> None:
        self.path, self.number, self.line = path, number, line

    def __call__(self) -> Row:
        row = jsonl_row(self.line, f"{self.path.name}:{self.number}")
        assert row is not None
        return renamed(row, {})


def _other_rows(path: Path, fields: Mapping[str, str]) -> Iterator[tuple[Any, bool, Callable[[], Row]]]:
    for row in file_rows(path):
        made = renamed(row, fields)
        yield made.data, not made.fault, partial(renamed, made, {})


def _repeated(
    files: list[Path], fields: Mapping[str, str], ids: array[int], kept: int
) -> tuple[list[_Found], int]:
    """The first `kept` rows whose id was used before, and how many there are; read again only if there are any."""
    hashes = np.frombuffer(ids, dtype=np.int64)
    ascending = np.sort(hashes)
    unique = not (ascending[1:] == ascending[:-1]).any()
    del ascending
    if unique:
        return [], 0
    order = np.argsort(hashes, kind="stable")
    again = order[1:][hashes[order[1:]] == hashes[order[:-1]]]  # places in the file, each not the first of its id
    wanted = set(hashes[np.sort(again)[:kept]].tolist())
    found: list[_Found] = []
    seen: dict[str, str] = {}
    number = 0
    for path in files:
        for row in file_rows(path):
            number += 1
            made = renamed(row, fields)
            id_ = made.data.get("id") if isinstance(made.data, Mapping) else None
            if isinstance(id_, str) and hash(id_) in wanted and len(found) < kept:
                found += [(number, f"{made.where}: {fault}") for fault in repeated_id(made, seen)]
    return found, len(again) if len(again) > kept else len(found)
