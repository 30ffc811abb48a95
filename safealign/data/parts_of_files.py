"""A large data file in parts that several processes check side by side; a part numbers its rows from its own start."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from safealign.data.sources import file_rows, jsonl_row, renamed
from safealign.data.validation import Refused, Row, is_sound, row_faults

PART = 32 * 2**20  # bytes of a part
ID_BYTES = 8  # of an id's hash
_ENDS = ("\n", "\r\n", "")


@dataclass(frozen=True)
class Part:
    """The lines of a JSONL file that begin in `[start, end)`, in bytes; `end` None is the whole of any file."""

    path: Path
    start: int = 0
    end: int | None = None


class Fault(NamedTuple):
    """What is wrong with a part's `row`, blank lines left out, in its `line`; both count from 1."""

    row: int
    line: int
    text: str


@dataclass
class Checked:
    """What was found in a part: the first of `n_faults`, and a hash of each id (`ID_BYTES` each, in order)."""

    lines: int = 0
    rows: int = 0
    n_faults: int = 0
    faults: tuple[Fault, ...] = ()
    ids: bytes = b""


def parts_of(files: list[Path], size: int) -> list[Part]:
    """All of the files, in order; a Parquet file is one part."""
    found: list[Part] = []
    for path in files:
        if path.suffix == ".jsonl":
            total = path.stat().st_size
            found += [Part(path, start, min(start + size, total)) for start in range(0, total, size)]
        else:
            found.append(Part(path))
    return found


def check_part(part: Part, fields: Mapping[str, str], refused: Refused | None, kept: int) -> Checked:
    """Checks each row by itself; at most `kept` faults are told."""
    result, ids = Checked(), bytearray()
    found: list[Fault] = []
    for number, data, readable, make in _rows(part, fields):
        result.lines = number
        if make is None:
            continue
        result.rows += 1
        if type(data) is dict and type(id_ := data.get("id")) is str:
            ids += id_hash(id_)
        if not (readable and is_sound(data, refused)):
            faults = row_faults(make(), refused)
            result.n_faults += len(faults)
            found += [Fault(result.rows, number, text) for text in faults[: kept - len(found)]]
    result.faults, result.ids = tuple(found), bytes(ids)
    return result


def id_hash(id_: str) -> bytes:
    """The same in every process, which Python's own hash is not."""
    return blake2b(id_.encode("utf-8", "surrogatepass"), digest_size=ID_BYTES).digest()


# A line's number, its data, whether it could be read, and how to make the row of it, which an ordinary one never needs
# (None for a blank line).
_Numbered = Iterator[tuple[int, Any, bool, Callable[[], Row] | None]]


def _rows(part: Part, fields: Mapping[str, str]) -> _Numbered:
    if part.path.suffix == ".jsonl":
        return _renamed_lines(part, fields) if fields else _plain_lines(part)
    return (_numbered(n, renamed(row, fields)) for n, row in enumerate(file_rows(part.path), start=1))


def _numbered(number: int, row: Row) -> tuple[int, Any, bool, Callable[[], Row]]:
    return number, row.data, not row.fault, partial(renamed, row, {})


def _renamed_lines(part: Part, fields: Mapping[str, str]) -> _Numbered:
    for number, line in enumerate(_lines(part), start=1):
        row = jsonl_row(line, "")
        yield (number, None, True, None) if row is None else _numbered(number, renamed(row, fields))


def _plain_lines(part: Part) -> _Numbered:
    decode = json.JSONDecoder().raw_decode
    for number, line in enumerate(_lines(part), start=1):
        try:
            text = line.decode()
            data, end = decode(text)
            ordinary = text[end:] in _ENDS
        except (ValueError, RecursionError):
            ordinary = False
        if not ordinary:  # blank, indented, with a byte-order mark, or a fault
            row = jsonl_row(line, "")
            if row is None:
                yield number, None, True, None
                continue
            data = row.data
        if type(data) is dict and "messages" not in data:
            data = renamed(Row("", data), {}).data
        yield number, data, True, partial(_row_of, line)


def _lines(part: Part) -> Iterator[bytes]:
    with part.path.open("rb", buffering=1 << 20) as file:
        if part.start:  # a line that began before belongs to the part before
            file.seek(part.start - 1)
            file.readline()
        left = None if part.end is None else part.end - file.tell()
        for line in file:
            if left is not None:
                if left <= 0:
                    return
                left -= len(line)
            yield line


def _row_of(line: bytes) -> Row:
    row = jsonl_row(line, "")
    assert row is not None
    return renamed(row, {})
