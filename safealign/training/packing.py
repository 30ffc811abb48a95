"""Documents as rows of tokens: long ones cut into parts, several to a row, each row a flat dict that a dataset holds.

The rows are the same whether they are read one by one or held in memory, and they carry each document's label, which
is why they are packed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from safealign.data.documents import Document
from safealign.data.records import MALICIOUS
from safealign.data.rendering import Renderer
from safealign.layout import document_layout
from safealign.layout.collate import IGNORED_LABEL
from safealign.training.examples import IGNORED, Example

_OPEN = 16  # rows that wait for a part that fits


@dataclass(frozen=True)
class Part:
    """Consecutive tokens of one document; `verdict` is 1.0 malicious, 0.0 benign, -100.0 unlabelled."""

    input_ids: tuple[int, ...]
    verdict: float

    @property
    def labels(self) -> tuple[int, ...]:
        """What the language model learns: all but the first token, and nothing of a malicious document."""
        if self.verdict == 1.0:
            return (IGNORED,) * len(self.input_ids)
        return (IGNORED, *self.input_ids[1:])


def parts_of(document: Document, renderer: Renderer, max_length: int) -> list[Part]:
    """The document's tokens in parts of at most `max_length`, as equal as can be; the last ends with end-of-text.

    Its text is encoded with control tokens off: none that it spells becomes one.
    """
    tokenizer = renderer.tokenizer
    opening = [tokenizer.bos_token_id] if tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id] else []
    ending = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids = [*opening, *renderer.content_ids(document.text), *ending]
    n = -(-len(ids) // max_length)
    verdict = IGNORED_LABEL if document.label is None else float(document.label == MALICIOUS)
    return [Part(tuple(ids[i * len(ids) // n : (i + 1) * len(ids) // n]), verdict) for i in range(n)]


@dataclass
class _Row:
    """Parts that share a row."""

    parts: list[Part] = field(default_factory=list)
    length: int = 0

    def add(self, part: Part) -> None:
        self.parts.append(part)
        self.length += len(part.input_ids)


def packed(parts: Iterable[Part], row_length: int) -> Iterator[dict[str, Any]]:
    """Rows of at most `row_length` tokens: each part goes into the fullest open row that holds it.

    A row: `input_ids`, `labels` (-100 where nothing is learnt), `lengths` of its parts and their `verdicts`.
    """
    rows: list[_Row] = []
    for part in parts:
        fitting = [row for row in rows if row.length + len(part.input_ids) <= row_length]
        if not fitting:
            if len(rows) == _OPEN:
                yield _as_dict(rows.pop(_fullest(rows)))
            fitting = [_Row()]
            rows.append(fitting[0])
        fitting[_fullest(fitting)].add(part)
    yield from map(_as_dict, rows)


def unpacked(parts: Iterable[Part]) -> Iterator[dict[str, Any]]:
    """A row for each part."""
    for part in parts:
        yield _as_dict(_Row([part]))


def packed_example(row: dict[str, Any], placement: str, id_: str = "") -> Example:
    """A row as an example with its layout; unlabelled documents keep their safety row, which no loss reads."""
    verdicts = [None if verdict == IGNORED_LABEL else verdict for verdict in row["verdicts"]]
    layout = document_layout(row["lengths"], verdicts, placement)
    return Example(id_, tuple(row["input_ids"]), tuple(row["labels"]), layout, "none")


def _fullest(rows: list[_Row]) -> int:
    return max(range(len(rows)), key=lambda i: rows[i].length)


def _as_dict(row: _Row) -> dict[str, Any]:
    return {
        "input_ids": [id_ for part in row.parts for id_ in part.input_ids],
        "labels": [label for part in row.parts for label in part.labels],
        "lengths": [len(part.input_ids) for part in row.parts],
        "verdicts": [part.verdict for part in row.parts],
    }
