"""The cache of sampled texts: finished files that are whole or noticed, and the portions of an unfinished one.

Harmful text is among them: files go into a folder that its owner alone reads, and messages name files, never texts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from safealign.data.records import Record
from safealign.errors import DataError
from safealign.files import write_text

Tokens = tuple[int, ...]


class Portions:
    """What an unfinished job has written so far: one line for each portion, flushed to the disk as it is done.

    A line holds a digest of what was asked and the token ids of the answers, so that a portion is either there as a
    whole, for exactly these prompts, or not at all. A last line torn by a kill is cut off (`torn` says so) and its
    portion written again. Raises DataError for damage anywhere else.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.torn = path, False
        self._found: dict[str, list[Tokens]] = {}
        if path.exists():
            self._read(path.read_bytes())

    def get(self, digest: str) -> list[Tokens] | None:
        """The answers of a finished portion, or None."""
        return self._found.get(digest)

    def put(self, digest: str, answers: Sequence[Tokens]) -> None:
        """Keeps a portion; when this returns, no kill can take it back."""
        line = json.dumps({"portion": digest, "tokens": answers}) + "\n"
        with self.path.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self._found[digest] = [tuple(ids) for ids in answers]

    def discard(self) -> None:
        """Removes the file, once what it was for is finished."""
        self.path.unlink(missing_ok=True)

    def _read(self, content: bytes) -> None:
        *lines, rest = content.split(b"\n")
        if rest:  # every whole line ends with a line break
            self.torn = True
            with self.path.open("r+b") as file:
                file.truncate(len(content) - len(rest))
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                self._found[str(row["portion"])] = [tuple(map(int, ids)) for ids in row["tokens"]]
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(
                    f"{self.path}:{number} is damaged: delete the file, and its texts will be sampled again"
                ) from error


def cached(
    folder: Path, key: str, make: Callable[[Portions], list[Record]], say: Callable[[str], None] | None = None
) -> list[Record]:
    """The records kept under `key`, made and kept when they are not there yet; one process makes, others wait."""
    path = folder / f"{key}.jsonl"
    if path.exists():
        return read_cache(path)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(folder / f"{key}.lock"):
        if path.exists():
            return read_cache(path)
        kept = Portions(folder / f"{key}.partial")
        if kept.torn and say is not None:
            say(f"  {kept.path.name}: its last portion was cut off while it was written, and is sampled again")
        records = make(kept)
        write_cache(path, records)
        kept.discard()
    return records


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Holds the lock; its file goes once the work is done, since who still waits for it will find the result."""
    with FileLock(lock):
        yield
        lock.unlink(missing_ok=True)


def write_cache(path: Path, records: Sequence[Record]) -> None:
    """Writes a finished file in one step; its last line counts the rows."""
    lines = [json.dumps(record.to_dict(), ensure_ascii=False) for record in records]
    write_text(path, "\n".join([*lines, json.dumps({"rows": len(lines)})]) + "\n")


def read_cache(path: Path) -> list[Record]:
    """Reads a cache file; raises DataError when its last line, which counts the rows, does not fit."""
    try:
        *rows, last = [json.loads(line) for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]
        if last == {"rows": len(rows)}:
            return [Record.from_dict(row, f"{path.name}:{i + 1}") for i, row in enumerate(rows)]
    except ValueError:
        pass
    raise DataError(f"{path} is torn: delete it, and it will be sampled again")
