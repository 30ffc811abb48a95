"""Examples rendered once: one process writes them into the cache, the other ranks and later runs map them from there.

They lie under a hash of all that they depend on, so that whatever changes is rendered again. What they spell, harmful
answers among it, is never copied to a run's own directory, and its owner alone can read it.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from math import isnan
from pathlib import Path
from typing import Any, overload

from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from pyarrow import RecordBatch

from safealign.assets.cache import cache_dir, locked, publish
from safealign.data.records import Record
from safealign.data.rendering import Renderer
from safealign.errors import AssetError
from safealign.files import private_folder
from safealign.layout import Layout, RowKind, SafetyRow, Span
from safealign.training.collator import LENGTH_KEY
from safealign.training.example_key import example_key
from safealign.training.examples import Example, ExampleSettings, each_example

Say = Callable[[str], None]
_ROWS, _MANIFEST = "rows.arrow", "manifest.json"
_FEATURES = Features(
    {
        "id": Value("string"),
        "category": Value("string"),
        "sampled": Value("bool"),
        "input_ids": List(Value("int32")),
        "labels": List(Value("int32")),
        "token_labels": List(Value("int8")),
        "sees": List(Value("int32")),
        "last_query": Value("int32"),
        "safety": List(Value("int32")),
        "verdicts": List(Value("float64")),
        LENGTH_KEY: Value("int64"),
    }
)


class _Made(Sequence[Example]):
    """Examples that are made as they are asked for; equal to a sequence of the same ones."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        found = range(len(self))[index]
        return self._made(found) if isinstance(found, int) else [self._made(at) for at in found]

    @abstractmethod
    def _made(self, at: int) -> Example:
        """The one in place `at`, counted from 0."""


class KeptExamples(_Made):
    """Examples of a memory-mapped file, each equal to the one that was written."""

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows
        self._batches = [_Batch(batch) for batch in rows.data.table.to_batches()]
        self._ends = list(accumulate(len(batch) for batch in self._batches))

    def __len__(self) -> int:
        return len(self.rows)

    def _made(self, at: int) -> Example:
        batch = bisect_right(self._ends, at)
        return self._batches[batch].example(at - self._ends[batch] + len(self._batches[batch]))


class Joined(_Made):
    """Two lots of examples, one after the other."""

    def __init__(self, first: Sequence[Example], second: Sequence[Example]) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def _made(self, at: int) -> Example:
        n = len(self.first)
        return self.first[at] if at < n else self.second[at - n]


def rows_folder() -> Path:
    """Where rendered examples are kept."""
    return cache_dir() / "rows"


def kept_examples(
    records: Sequence[Record], renderer: Renderer, settings: ExampleSettings, seed: int, say: Say
) -> tuple[Sequence[Example], list[str]]:
    """The examples of `build_examples` whose prompt fits into `max_length`, and the ids of the others.

    Where the cache cannot be written they are made in memory, with a word.
    """
    key = example_key(records, renderer, settings, seed)
    folder = rows_folder() / key
    try:
        private_folder(folder.parent)
        with locked(f"rows-{key[:2]}"):
            found = _read(folder, say)
            if found is None:
                rendered = each_example(records, renderer, settings, seed)
                publish(folder, lambda path: _write(path, rendered, settings), 0o700)
                found = _read(folder, say)
    except (AssetError, OSError) as error:
        say(f"warning: rendered examples cannot be kept and are made again by every process: {error}")
        found = None
    if found is not None:
        return found
    examples, too_long = [], []
    for example in each_example(records, renderer, settings, seed):
        if fits(example, settings):
            examples.append(example)
        else:
            too_long.append(example.id)
    return examples, too_long


def fits(example: Example, settings: ExampleSettings) -> bool:
    """Does the whole request come before `max_length`?"""
    return example.layout.last_query < settings.max_length


def _write(folder: Path, examples: Iterator[Example], settings: ExampleSettings) -> None:
    too_long = []
    path = folder / _ROWS
    with ArrowWriter(features=_FEATURES, path=str(path), disable_nullable=False) as writer:
        for example in examples:
            if fits(example, settings):
                writer.write(_row(example))
            else:
                too_long.append(example.id)
        n, _ = writer.finalize()
    manifest = {"rows": n, "sha256": _sha256(path), "too_long": too_long}
    (folder / _MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def _read(folder: Path, say: Say) -> tuple[KeptExamples, list[str]] | None:
    """What lies there; None where there is nothing, or, with a word, nothing whole."""
    if not folder.exists():
        return None
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        if _sha256(folder / _ROWS) == manifest["sha256"]:
            rows = Dataset.from_file(str(folder / _ROWS)) if manifest["rows"] else _no_rows()
            return KeptExamples(rows), list(manifest["too_long"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        say(f"warning: {folder} cannot be read ({error}): rendering its examples again")
    else:
        say(f"warning: {folder} is torn or was changed: rendering its examples again")
    return None


def _no_rows() -> Dataset:
    # A file without rows has no batch, which `from_file` does not take.
    return Dataset.from_dict({name: [] for name in _FEATURES}, _FEATURES)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _row(example: Example) -> dict[str, Any]:
    layout = example.layout
    if layout.blocks:
        raise ValueError("packed examples are not kept: pack what is read")
    return {
        "id": example.id,
        "category": example.category,
        "sampled": example.sampled,
        "input_ids": example.input_ids,
        "labels": example.labels,
        "token_labels": example.token_labels,
        "sees": layout.sees,
        "last_query": layout.last_query,
        "safety": [number for row in layout.safety for number in _numbers(row)],
        "verdicts": [float("nan") if row.label is None else row.label for row in layout.safety],
        LENGTH_KEY: example.n_tokens,
    }


def _numbers(row: SafetyRow) -> Iterator[int]:
    yield from (int(row.kind), row.position, row.ready)
    for spans in (row.attends, row.pools):
        yield len(spans)
        yield from (number for span in spans for number in span)


class _Batch:
    """One batch of the file's rows, whose numbers are looked at where they lie."""

    def __init__(self, batch: RecordBatch) -> None:
        self._plain = [batch.column(name) for name in ("id", "category", "sampled", "last_query")]
        lists = (batch.column(name) for name in ("input_ids", "labels", "token_labels", "sees", "safety", "verdicts"))
        self._lists = [(column.offsets.to_numpy(), column.values.to_numpy()) for column in lists]
        self._n = batch.num_rows

    def __len__(self) -> int:
        return self._n

    def example(self, at: int) -> Example:
        """The one in row `at`."""
        id_, category, sampled, last_query = (column[at].as_py() for column in self._plain)
        lists = (values[offsets[at] : offsets[at + 1]].tolist() for offsets, values in self._lists)
        ids, labels, token_labels, sees, numbers, verdicts = map(tuple, lists)
        left = iter(numbers)
        safety = tuple(_safety_row(left, verdict) for verdict in verdicts)
        return Example(id_, ids, labels, Layout(len(ids), safety, sees, last_query), category, token_labels, sampled)


def _safety_row(numbers: Iterator[int], verdict: float) -> SafetyRow:
    kind, position, ready = (next(numbers) for _ in range(3))
    attends, pools = (tuple(Span(next(numbers), next(numbers)) for _ in range(next(numbers))) for _ in range(2))
    return SafetyRow(RowKind(kind), attends, pools, position, ready, None if isnan(verdict) else verdict)

