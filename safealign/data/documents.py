"""Raw documents, one at a time: plain text with perhaps a label, from files, the hub, or the data sets with a name."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safealign.config.groups import SourceConfig
from safealign.data.parts import take_part
from safealign.data.records import BENIGN, LABELS, MALICIOUS, Record
from safealign.data.sources import known_sources, load_records, read_rows, renamed
from safealign.data.validation import Row
from safealign.errors import DataError

FIELDS = ("text", "label", "id")


@dataclass(frozen=True)
class Document:
    """A text; `label` is benign, malicious, or None where nobody judged it. `where` ("file:row") is for messages."""

    text: str
    label: str | None = None
    id: str = ""
    source: str = ""
    where: str = ""

    @property
    def digest(self) -> str:
        """Hex sha256 of the text: what labels are cached under, and which side of a split it stands on."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class Fault(NamedTuple):
    """A row that is no document: "file:row" and what is wrong with it."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


def read_documents(source: SourceConfig, offline: bool = False, streaming: bool = False) -> Iterator[Document | Fault]:
    """The documents of one source in order, at most `limit`, a `Fault` where a row is none.

    A row of the user's has `text`, and perhaps `label` and `id`; a record of a data set with a name is its turns, a
    blank line between them. The row's own label comes before the source's. Raises DataError or AssetError for a
    source that cannot be read at all.
    """
    named = source.source in known_sources()
    if source.part != "all" and not named:
        raise DataError(f"part={source.part} of {source.source}: only data sets with a name have parts")
    found = _of_records(source, offline) if named else _of_rows(source, offline, streaming)
    for number, item in enumerate(found):
        if source.limit is not None and number >= source.limit:
            return
        yield item


def sound(items: Iterable[Document | Fault]) -> Iterator[Document]:
    """The documents; raises DataError, with file and row, at the first fault."""
    for item in items:
        if isinstance(item, Fault):
            raise DataError(f"{item}: correct this row of data.documents, or take it out")
        yield item


def round_robin(streams: Iterable[Iterator[Document | Fault]]) -> Iterator[Document | Fault]:
    """One of each source in turn until all are spent, so that any stretch holds something of every source."""
    live = list(streams)
    while live:
        for stream in list(live):
            item = next(stream, None)
            if item is None:
                live.remove(stream)
            else:
                yield item


def _of_records(source: SourceConfig, offline: bool) -> Iterator[Document]:
    records = load_records(source.source, label=source.label, offline=offline)
    for record in take_part(records, source.part, source.source):
        text = "\n\n".join(turn.content for turn in record.messages)
        yield Document(text, _label_of(record), record.id or record.where, source.source, record.where)


def _label_of(record: Record) -> str | None:
    """Malicious as soon as any part of it is, benign where what was judged is."""
    labels = {record.label, record.response_label, *(span.label for span in record.spans)}
    if MALICIOUS in labels:
        return MALICIOUS
    return BENIGN if BENIGN in labels else None


def _of_rows(source: SourceConfig, offline: bool, streaming: bool) -> Iterator[Document | Fault]:
    name = Path(source.source).stem if Path(source.source).suffix else source.source
    for read in read_rows(source.source, source.split, offline, streaming):
        row = renamed(read, source.fields)
        reason = row.fault or _fault(row)
        if reason:
            yield Fault(row.where, reason)
            continue
        label = row.data.get("label") or source.label
        yield Document(row.data["text"], label, row.data.get("id") or row.where, name, row.where)


def _fault(row: Row) -> str:
    """What keeps a parsed row from being a document; "" for nothing."""
    if not isinstance(row.data, Mapping):
        return "must be an object with text"
    text, label, id_ = (row.data.get(name) for name in FIELDS)
    if text is None:
        close = [key for key in row.data if difflib.get_close_matches(str(key), FIELDS[:1], n=1, cutoff=0.7)]
        return f"has no text{f'; did you mean text by {close[0]!r}?' if close else ': name its column in fields'}"
    if not isinstance(text, str) or not text.strip():
        return "text must be a string that is not blank"
    if not _is_unicode(text):
        return "text holds half a character (a lone surrogate)"
    if label not in (None, *LABELS):
        return f"label must be {' or '.join(LABELS)}, or left out, not {label!r}"
    return "" if id_ is None or isinstance(id_, str) else "id must be a string"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
