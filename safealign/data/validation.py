"""Finds every fault in a set of rows and names its file and row; nothing is repaired or dropped."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from safealign.data.records import LABELS, MALICIOUS, ROLES, Record
from safealign.errors import DataError

Refused = Callable[[str], bool]
FIELDS = ("messages", "label", "response_label", "spans", "id", "source", "category", "complete", "learn")
_TEXTS = ("id", "source", "category")
_KNOWN = frozenset(FIELDS)
_LABEL_OR_NONE = (None, *LABELS)
_TEXT_OR_NONE = (type(None), str)
_SURROGATE = re.compile("[\ud800-\udfff]")


class Row(NamedTuple):
    """A row as it was read: `where` is "file:row"; `fault` says why it could not even be parsed."""

    where: str
    data: Any
    fault: str = ""


def find_problems(
    rows: Iterable[Record | Row | Mapping[str, Any]], refused: Refused | None = None
) -> list[str]:
    """One line per fault, over all rows. `refused` tells whether a text is a refusal (None: not checked).

    Found are: bad JSON, wrong types, misspelt fields, missing or unknown roles, empty turns, turns out of
    order, unknown labels, spans that are empty, overlap or lie outside the answer, an answer at odds with its
    label, and ids that occur twice.
    """
    problems: list[str] = []
    seen: dict[str, str] = {}
    for number, item in enumerate(rows, start=1):
        row = _as_row(item, number)
        faults = row_faults(row, refused)
        faults += repeated_id(row, seen)
        problems += [f"{row.where}: {fault}" for fault in faults]
    return problems


def require_valid(
    rows: Iterable[Record | Row | Mapping[str, Any]], what: str = "the data", refused: Refused | None = None
) -> None:
    """Raise DataError with every fault of `find_problems`, if there is one."""
    problems = find_problems(rows, refused)
    if problems:
        count = f"{len(problems)} fault{'s' if len(problems) > 1 else ''}"
        raise DataError(f"{what} has {count} and nothing of it was used; correct these rows:", problems)


def row_faults(row: Row, refused: Refused | None = None) -> list[str]:
    """Every fault of one row by itself."""
    if row.fault:
        return [row.fault]
    return [] if is_sound(row.data, refused) else list(_faults(row.data, refused))


def is_sound(row: Any, refused: Refused | None = None) -> bool:
    """Whether an ordinary row surely has no fault: True is certain, False asks the thorough checks.

    The short way for files of millions of rows; spans and columns that we do not know go the long way.
    """
    if type(row) is not dict or not row.keys() <= _KNOWN or row.get("spans"):
        return False
    messages, last = row.get("messages"), "assistant"
    if type(messages) is not list or not messages:
        return False
    for turn in messages:
        if type(turn) is not dict:
            return False
        role, content = turn.get("role"), turn.get("content")
        if role != ("assistant" if last == "user" else "user") and not (role == "system" and turn is messages[0]):
            return False
        if type(content) is not str or not content or content.isspace():
            return False
        if not content.isascii() and _SURROGATE.search(content):
            return False
        last = role
    answer = row.get("response_label")
    if row.get("label") not in _LABEL_OR_NONE or answer not in _LABEL_OR_NONE or last == "system":
        return False
    if not isinstance(row.get("complete", True), bool) or not isinstance(row.get("learn", True), bool):
        return False
    for key in _TEXTS:
        if type(row.get(key)) not in _TEXT_OR_NONE:
            return False
    if answer is None:
        return True
    if last != "assistant":
        return False
    return answer != MALICIOUS or refused is None or not refused(_opening(messages[-1]["content"]))


def _as_row(item: Record | Row | Mapping[str, Any], number: int) -> Row:
    if isinstance(item, Row):
        return item
    if isinstance(item, Record):
        return Row(item.where or f"row {number}", item.to_dict())
    return Row(f"row {number}", item)


def repeated_id(row: Row, seen: dict[str, str]) -> list[str]:
    """The fault of a row whose id is in `seen` (id to place), to which it is added; an id-less row has none."""
    id_ = row.data.get("id") if isinstance(row.data, Mapping) else None
    if not isinstance(id_, str):
        return []
    first = seen.setdefault(id_, row.where)
    return [] if first is row.where else [f"id {id_!r} is used before, at {first}: every id must be unique"]


def _faults(row: Any, refused: Refused | None) -> Iterator[str]:
    if not isinstance(row, Mapping):
        yield f"a row must be an object with messages, not {_kind(row)}"
        return
    yield from _misspelt(row)
    yield from _message_faults(row.get("messages"))
    yield from _label_faults(row)
    for key in _TEXTS:
        if row.get(key) is not None and not isinstance(row[key], str):
            yield f"{key} must be text, not {_kind(row[key])}"
    for key in ("complete", "learn"):
        if not isinstance(row.get(key, True), bool):
            yield f"{key} must be true or false, not {_kind(row[key])}"
    response = _response(row.get("messages"))
    spans = list(_span_faults(row.get("spans"), response))
    yield from spans
    yield from _odds_faults(row, response, refused, spans_are_sound=not spans)


def _misspelt(row: Mapping[str, Any]) -> Iterator[str]:
    """Other columns are allowed, but not ones that look like a slip of a known field."""
    yield from _slips(tuple(row))


@lru_cache(maxsize=1024)
def _slips(keys: tuple[Any, ...]) -> tuple[str, ...]:
    """One fault for each such column; all rows of a file have much the same, and comparing words is slow."""
    unknown = [key for key in keys if key not in FIELDS]
    near = [(key, difflib.get_close_matches(str(key), FIELDS, n=1, cutoff=0.8)) for key in unknown]
    return tuple(
        f"unknown field {key!r}: did you mean {close[0]!r}?" for key, close in near if close and close[0] not in keys
    )


def _message_faults(messages: Any) -> Iterator[str]:
    if messages is None:
        yield "messages are missing"
    elif not _is_list(messages):
        yield f"messages must be a list of turns, not {_kind(messages)}"
    elif not messages:
        yield "messages are empty: there must be at least a user turn"
    else:
        roles = [turn.get("role") if isinstance(turn, Mapping) else None for turn in messages]
        for number, turn in enumerate(messages, start=1):
            yield from (f"turn {number} {fault}" for fault in _turn_faults(turn))
        if all(role in ROLES for role in roles):
            yield from _order_faults(roles)


def _turn_faults(turn: Any) -> Iterator[str]:
    if not isinstance(turn, Mapping):
        yield f"must be an object with role and content, not {_kind(turn)}"
        return
    role, content = turn.get("role"), turn.get("content")
    if not role:
        yield "has no role"
    elif role not in ROLES:
        yield f"has the unknown role {role!r}: {_choices(ROLES)}"
    if content is None:
        yield "has no content"
    elif not isinstance(content, str):
        yield f"must have text as content, not {_kind(content)}"
    elif not content.strip():
        yield f"({role}) is empty"
    elif _SURROGATE.search(content):
        yield f"({role}) holds half a surrogate pair, which is not valid Unicode text"


def _order_faults(roles: list[Any]) -> Iterator[str]:
    turns = roles[1:] if roles[0] == "system" else roles
    if not turns:
        yield "there is no user turn"
    for number, role in enumerate(turns, start=1 + len(roles) - len(turns)):
        expected = "user" if (number - 1 - (len(roles) - len(turns))) % 2 == 0 else "assistant"
        if role != expected:
            yield f"turn {number} is the {role}'s, but the {expected}'s is due (user and assistant alternate)"
            return


def _label_faults(row: Mapping[str, Any]) -> Iterator[str]:
    for key in ("label", "response_label"):
        if row.get(key) is not None and row[key] not in LABELS:
            yield f"unknown {key} {row[key]!r}: {_choices(LABELS)}"
    if row.get("response_label") is not None and _response(row.get("messages")) is None:
        yield "response_label is set but there is no final assistant turn"


def _span_faults(spans: Any, response: str | None) -> Iterator[str]:
    if spans is None or (_is_list(spans) and not spans):
        return
    if not _is_list(spans):
        yield f"spans must be a list, not {_kind(spans)}"
        return
    if response is None:
        yield "spans are set but there is no final assistant turn"
        return
    ranges = []
    for number, span in enumerate(spans, start=1):
        faults = list(_one_span_faults(span, len(response)))
        yield from (f"span {number} {fault}" for fault in faults)
        if not faults:
            ranges.append((span["start"], span["end"], number))
    for (_, end, one), (start, _, other) in _neighbours(sorted(ranges)):
        if start < end:
            yield f"spans {one} and {other} overlap"


def _one_span_faults(span: Any, length: int) -> Iterator[str]:
    if not isinstance(span, Mapping):
        yield f"must be an object with start, end and label, not {_kind(span)}"
        return
    if span.get("label") not in LABELS:
        yield f"has the unknown label {span.get('label')!r}: {_choices(LABELS)}"
    start, end = span.get("start"), span.get("end")
    if type(start) is not int or type(end) is not int:
        yield "must have whole numbers as start and end"
    elif start >= end:
        yield f"is empty ({start} to {end})"
    elif start < 0 or end > length:
        yield f"({start} to {end}) lies outside the answer, which has {length} characters"


def _odds_faults(
    row: Mapping[str, Any], response: str | None, refused: Refused | None, spans_are_sound: bool
) -> Iterator[str]:
    """A malicious answer must not be a refusal, nor harmless in all spans. (A harmless one may turn bad.)"""
    if row.get("response_label") != MALICIOUS or not response or not response.strip():
        return
    if refused is not None and refused(_opening(response)):
        yield "the answer is labelled malicious, but it is a refusal"
    spans = row.get("spans") or ()
    if spans and spans_are_sound and not any(span["label"] == MALICIOUS for span in spans):
        covered = sum(span["end"] - span["start"] for span in spans)
        if covered >= len(response.strip()):
            yield "the answer is labelled malicious, but its spans say that all of it is benign"


def _opening(response: str) -> str:
    """The first sentence: a plain refusal shows there; a harmful answer may speak of refusing later on."""
    return re.split(r"(?<=[.!?\n])\s", response.strip(), maxsplit=1)[0]


def _response(messages: Any) -> str | None:
    last = messages[-1] if _is_list(messages) and messages else None
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        return None
    content = last.get("content")
    return content if isinstance(content, str) else None


def _neighbours(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(items, items[1:], strict=False)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _choices(names: tuple[str, ...]) -> str:
    return f"choose {', '.join(names[:-1])} or {names[-1]}"


def _kind(value: Any) -> str:
    kinds = {type(None): "nothing", str: "text", bool: "true/false", int: "a number", float: "a number"}
    return kinds.get(type(value), "a list" if _is_list(value) else "an object")
