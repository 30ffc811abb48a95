"""Records by name, file or hub id, checked as a whole before any is used."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from safealign.assets import data_path
from safealign.assets.hub import looks_like_hub_id
from safealign.data.readers import READERS
from safealign.data.records import Record
from safealign.data.validation import Refused, Row, require_valid
from safealign.errors import AssetError, DataError

_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"}


def load_records(
    spec: str | Path,
    *,
    split: str = "train",
    fields: Mapping[str, str] | None = None,
    label: str | None = None,
    refused: Refused | None = None,
    offline: bool | None = None,
    head: int | None = None,
) -> list[Record]:
    """All records of a source; `source` is set on each.

    `spec`: a file or folder (.jsonl, .parquet), a known data set (`known_sources()`), or a hub id
    ("owner/name", with `split`). `fields` renames columns, e.g. `{"messages": "conversations"}` or
    `{"prompt": "question", "response": "answer"}`. `label` is given to records that have none. `refused`
    tells whether a text is a plain refusal. `head`: read so many rows at most.
    Raises DataError with *all* bad rows, or AssetError when the source cannot be found or fetched.
    """
    spec = str(spec)
    if spec in READERS:
        records = _from_asset(spec, offline)
        require_valid(records, spec, refused)
    else:
        rows = [renamed(row, fields or {}) for row in islice(read_rows(spec, split, offline), head)]
        require_valid(rows, spec, refused)
        records = [Record.from_dict(row.data, row.where) for row in rows]
    name = Path(spec).stem if Path(spec).suffix else spec
    return [_completed(record, name, label) for record in records]


def load_rows(spec: str, split: str, fields: Mapping[str, str], offline: bool | None) -> list[Row]:
    """The rows of a file, folder or hub data set as they stand, columns renamed, nothing checked.

    A line that cannot be parsed is a row with its fault. Raises AssetError when the source cannot be found.
    """
    return [_with_columns(row, fields) for row in read_rows(spec, split, offline)]


def known_sources() -> dict[str, str]:
    """The data sets that have a name, with a line on each."""
    return {name: reader.note for name, reader in READERS.items()}


def _from_asset(name: str, offline: bool | None) -> list[Record]:
    reader = READERS[name]
    path = data_path(reader.asset, offline)
    try:
        return list(reader.read(path))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is not in the format of {name} ({error!r}): give the file that the name means"
        ) from error


def _completed(record: Record, name: str, label: str | None) -> Record:
    return dataclasses.replace(record, source=record.source or name, label=record.label or label)


def read_rows(spec: str, split: str, offline: bool | None, streaming: bool = False) -> Iterator[Row]:
    """The rows of a file, folder or hub id, one at a time; `streaming` downloads nothing of a hub data set ahead.

    Raises DataError for an unknown ending or an unreadable file, AssetError for what cannot be found.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        for file in files_of(path):
            yield from file_rows(file)
    elif path.is_file():
        if path.suffix not in _FORMATS:
            raise DataError(f"{path} has the unknown ending {path.suffix!r}: use {' or '.join(_FORMATS)}")
        yield from file_rows(path)
    elif looks_like_hub_id(spec) and path.suffix not in _FORMATS:
        yield from _hub_rows(spec, split, offline, streaming)
    else:
        raise AssetError(_unknown(spec))


def files_of(path: Path) -> list[Path]:
    """The data files that a path means: itself, or those in a folder by name; none if it is no path.

    Raises DataError for a folder without any.
    """
    if not path.is_dir():
        return [path] if path.is_file() and path.suffix in _FORMATS else []
    files = sorted(file for file in path.iterdir() if file.suffix in _FORMATS)
    if not files:
        raise DataError(f"the folder {path} holds no {' or '.join(_FORMATS)} file")
    return files


def file_rows(path: Path) -> Iterator[Row]:
    """The rows of one data file, read as they are asked for."""
    return _FORMATS[path.suffix](path)


def _unknown(spec: str) -> str:
    close = difflib.get_close_matches(spec, READERS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known names are {', '.join(READERS)}"
    return f"there is no file and no data set {spec!r}: {hint}"


def _jsonl(path: Path) -> Iterator[Row]:
    """Like every reader of user files: a line that cannot be parsed becomes a row with its fault."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            row = jsonl_row(line, f"{path.name}:{number}")
            if row is not None:
                yield row


def jsonl_row(line: bytes, where: str) -> Row | None:
    """The row of one line of a JSONL file, or its fault; None for a blank line."""
    try:
        text = line.decode("utf-8-sig")
        return Row(where, json.loads(text)) if text.strip() else None
    except UnicodeDecodeError:
        return Row(where, None, "is not UTF-8 text")
    except json.JSONDecodeError as error:
        return Row(where, None, f"is not JSON ({error.msg} at column {error.colno})")
    except RecursionError:
        return Row(where, None, "is nested too deep to be read")
    except ValueError:  # Python's own limit, the one fault that is no JSONDecodeError
        return Row(where, None, "holds a number with too many digits")


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            yield from (
                Row(f"{path.name}:{number}", _without_none(row)) for number, row in enumerate(rows, start=1)
            )
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path} is not a readable Parquet file ({error})") from error


_FORMATS: dict[str, Callable[[Path], Iterator[Row]]] = {".jsonl": _jsonl, ".parquet": _parquet}


def _hub_rows(spec: str, split: str, offline: bool | None, streaming: bool) -> Iterator[Row]:
    rows = _hub_dataset(spec, split, offline, streaming)
    yield from (
        Row(f"{spec}[{split}]:{number}", _without_none(row)) for number, row in enumerate(rows, start=1)
    )


def _hub_dataset(spec: str, split: str, offline: bool | None, streaming: bool) -> Iterable[Mapping[str, Any]]:
    datasets: Any = import_module("datasets")  # heavy, and without type hints

    mode = datasets.DownloadConfig(local_files_only=True) if offline else None
    more = {"streaming": True} if streaming else {}
    try:
        loaded: Iterable[Mapping[str, Any]] = datasets.load_dataset(spec, split=split, download_config=mode, **more)
    except Exception as error:  # the library raises what its many back ends raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise AssetError(
            f"the data set {spec!r} (split {split!r}) could not be loaded from the hub ({first}): check "
            "name, split and network, or give a local .jsonl or .parquet file"
        ) from error
    return loaded


def _without_none(row: Mapping[str, Any]) -> dict[str, Any]:
    """Columnar formats fill absent fields with None."""
    return {key: value for key, value in row.items() if value is not None}


def _with_columns(row: Row, fields: Mapping[str, str]) -> Row:
    if row.fault or not isinstance(row.data, Mapping):
        return row
    data = dict(row.data)
    missing = [column for column in fields.values() if column not in data]
    if missing and len(missing) == len(fields):
        return Row(row.where, data, f"has no column {missing[0]!r}; it has {', '.join(map(str, data))}")
    return Row(row.where, data | {field: data[column] for field, column in fields.items() if column in data})


def renamed(row: Row, fields: Mapping[str, str]) -> Row:
    """The row with its columns called as ours are (`fields`: ours to theirs), turns in our spelling."""
    row = _with_columns(row, fields)
    if row.fault or not isinstance(row.data, Mapping):
        return row
    data = dict(row.data)
    if "messages" not in data and isinstance(data.get("prompt"), str):
        data["messages"] = _question(data["prompt"], data.get("response"))
    if isinstance(data.get("messages"), list):
        data["messages"] = [_turn(turn) for turn in data["messages"]]
    return Row(row.where, data)


def _question(prompt: str, response: Any) -> list[dict[str, Any]]:
    turns = [{"role": "user", "content": prompt}]
    return turns if response is None else [*turns, {"role": "assistant", "content": response}]


def _turn(turn: Any) -> Any:
    """The other common spelling of a turn (`from`, `value`) in ours."""
    if isinstance(turn, Mapping) and "from" in turn and "role" not in turn:
        name = turn["from"]
        role = _ROLES.get(name, name) if isinstance(name, str) else name
        return {"role": role, "content": turn.get("value")}
    return turn
