"""Preference records: one prompt, the answer that is preferred and the one that is not, checked row by row.

No loss may raise the likelihood of harmful text, so a pair that prefers a harmful answer is a fault of its row.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safealign.data.records import BENIGN, LABELS, MALICIOUS, Message, Record
from safealign.data.sources import load_rows
from safealign.data.validation import Row, find_problems
from safealign.errors import DataError

Refused = Callable[[str], bool]
FIELDS = ("prompt", "chosen", "rejected", "label", "chosen_label", "rejected_label", "id", "source", "category")
_SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Preference:
    """`chosen` is preferred to `rejected` as the answer to `prompt`; `label` judges the request.

    The chosen answer is harmless by definition; `rejected_label` says whether the other one is. `where` ("file:row")
    is for messages to the user. `…_complete` False: the answer was cut, so that its end is no end of turn.
    """

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    label: str
    rejected_label: str
    id: str
    source: str | None = None
    category: str | None = None
    where: str = ""
    chosen_complete: bool = True
    rejected_complete: bool = True

    @property
    def sides(self) -> tuple[Record, Record]:
        """The pair as two conversations, chosen first."""
        return (
            self._record(self.chosen, BENIGN, self.chosen_complete),
            self._record(self.rejected, self.rejected_label, self.rejected_complete),
        )

    def _record(self, answer: str, answer_label: str, complete: bool) -> Record:
        turns = (*self.prompt, Message("assistant", answer))
        return Record(turns, self.label, answer_label, (), self.id, self.source, self.category, self.where, complete)


def load_preferences(
    spec: str | Path,
    refused: Refused,
    *,
    split: str = "train",
    fields: Mapping[str, str] | None = None,
    label: str | None = None,
    offline: bool | None = None,
) -> list[Preference]:
    """All preference records of a .jsonl or .parquet file, a folder of them, or a hub data set.

    A row: `prompt` (text, or turns that end with the user's), `chosen` and `rejected` (text, or one assistant turn),
    `label` (benign or malicious, of the request). Optional: `chosen_label` and `rejected_label` for the answers, `id`,
    `source`, `category`. `fields` renames columns, `label` is given to rows that have none, `refused` tells whether
    an answer is a refusal. Raises DataError with every fault of every row, AssetError when nothing is found.
    """
    rows = [_labelled(row, label) for row in load_rows(str(spec), split, fields or {}, offline)]
    problems = preference_problems(rows, refused)
    if problems:
        count = f"{len(problems)} fault{'s' if len(problems) > 1 else ''}"
        raise DataError(f"{spec} has {count} and nothing of it was used; correct these rows:", problems)
    name = Path(spec).stem if Path(spec).suffix else str(spec)
    return [_preference(row, name, refused) for row in rows]


def preference_problems(rows: Iterable[Row], refused: Refused) -> list[str]:
    """One line per fault, over all rows, each with its file and row."""
    rows = list(rows)
    problems = [f"{row.where}: {fault}" for row in rows for fault in ([row.fault] if row.fault else _faults(row.data))]
    sound = [row for row in rows if not row.fault and not list(_faults(row.data))]
    problems += find_problems([Row(row.where, _request(row.data)) for row in sound])
    return problems + [f"{row.where}: {fault}" for row in sound for fault in _harm_faults(row.data, refused)]


def _faults(row: Any) -> Iterator[str]:
    """What keeps a row from being read as a pair at all."""
    if not isinstance(row, Mapping):
        yield "a row must be an object with prompt, chosen, rejected and label"
        return
    for key in row:
        close = difflib.get_close_matches(str(key), FIELDS, n=1, cutoff=0.8)
        if close and key not in FIELDS and close[0] not in row:
            yield f"unknown field {key!r}: did you mean {close[0]!r}?"
    prompt = row.get("prompt")
    if not prompt:
        yield "prompt is missing or empty"
    elif not isinstance(prompt, str | list | tuple):
        yield "prompt must be text or a list of turns"
    elif _role(_turns(prompt)[-1]) == "assistant":
        yield "prompt ends with an assistant turn: its last turn must be the user's"
    yield from _answer_faults(row)
    for key in ("label", "chosen_label", "rejected_label"):
        if row.get(key) is None and key == "label":
            yield f"label is missing: say whether the request is {' or '.join(LABELS)}"
        elif row.get(key) is not None and row[key] not in LABELS:
            yield f"unknown {key} {row[key]!r}: choose {' or '.join(LABELS)}"


def _answer_faults(row: Mapping[str, Any]) -> Iterator[str]:
    texts = {side: _answer(row.get(side)) for side in _SIDES}
    for side, text in texts.items():
        if row.get(side) is None:
            yield f"{side} is missing"
        elif text is None:
            yield f"{side} must be text, or a list with one assistant turn"
        elif not text.strip():
            yield f"{side} is empty"
        elif any("\ud800" <= character <= "\udfff" for character in text):
            yield f"{side} holds half a surrogate pair, which is not valid Unicode text"
    if texts["chosen"] is not None and texts["chosen"] == texts["rejected"]:
        yield "chosen and rejected are the same text"


def _harm_faults(row: Mapping[str, Any], refused: Refused) -> Iterator[str]:
    """A harmful answer must not be preferred; an answer to a malicious request must refuse, or be vouched for."""
    chosen, rejected = (str(_answer(row[side])) for side in _SIDES)
    if row.get("chosen_label") == MALICIOUS:
        yield "chosen is labelled malicious: no loss may raise the likelihood of a harmful answer; leave the pair out"
    elif row["label"] == MALICIOUS and row.get("chosen_label") is None and not refused(chosen):
        if refused(rejected):
            yield "chosen answers a malicious request that rejected refuses: are the two exchanged?"
        else:
            yield (
                "chosen does not refuse a malicious request: if it is harmless all the same, say "
                "chosen_label: benign, else leave the pair out"
            )
    if row.get("rejected_label") == MALICIOUS and refused(rejected):
        yield "rejected is labelled malicious, but it is a refusal"


def _preference(row: Row, name: str, refused: Refused) -> Preference:
    data = row.data
    chosen, rejected = (str(_answer(data[side])) for side in _SIDES)
    harmful = data["label"] == MALICIOUS and not refused(rejected)
    return Preference(
        prompt=tuple(Message(turn["role"], turn["content"]) for turn in _turns(data["prompt"])),
        chosen=chosen,
        rejected=rejected,
        label=data["label"],
        rejected_label=data.get("rejected_label") or (MALICIOUS if harmful else BENIGN),
        id=data.get("id") or row.where.replace("#", "_"),
        source=data.get("source") or name,
        category=data.get("category"),
        where=row.where,
    )


def _labelled(row: Row, label: str | None) -> Row:
    if label is None or not isinstance(row.data, Mapping) or row.data.get("label") is not None:
        return row
    return Row(row.where, {**row.data, "label": label}, row.fault)


def _request(row: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt as a record, which `validation` knows how to check."""
    kept = {key: row[key] for key in ("label", "id", "source", "category") if row.get(key) is not None}
    return {"messages": _turns(row["prompt"]), **kept}


def _turns(prompt: Any) -> Any:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _role(turn: Any) -> Any:
    return turn.get("role") if isinstance(turn, Mapping) else None


def _answer(value: Any) -> str | None:
    """The text of an answer given as text or as a list with one assistant turn; None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and len(value) == 1 and _role(value[0]) == "assistant":
        content = value[0].get("content")
        return content if isinstance(content, str) else None
    return None
