"""The record: one conversation with what is known about the harm of its request and of its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

ROLES = ("system", "user", "assistant")
BENIGN, MALICIOUS = "benign", "malicious"
LABELS = (BENIGN, MALICIOUS)
# How the `source` of what the undefended model wrote begins, or goes on after that of a request and a plus sign.
SAMPLED = "sampled_"


class Message(NamedTuple):
    """One turn: `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class LabelledSpan:
    """A character range `[start, end)` of the response with a label of its own."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class Record:
    """One conversation. `label` judges the request, `response_label` the answer, `spans` parts of the answer.

    The last turn is the assistant's, or there is none (a prompt only). `where` ("file:row") is for messages
    to the user and is not part of the data. `complete` False: the answer was cut, so that its end is no end
    of turn to learn from. `learn` False: the answer trains verdicts, and the language model never learns it.
    """

    messages: tuple[Message, ...]
    label: str | None = None
    response_label: str | None = None
    spans: tuple[LabelledSpan, ...] = ()
    id: str | None = None
    source: str | None = None
    category: str | None = None
    where: str = ""
    complete: bool = True
    learn: bool = True

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns without a final assistant turn."""
        return self.messages[:-1] if self.response is not None else self.messages

    @property
    def response(self) -> str | None:
        """Text of the final assistant turn, or None for a prompt only."""
        if self.messages and self.messages[-1].role == "assistant":
            return self.messages[-1].content
        return None

    @property
    def request(self) -> str:
        """Text of the newest user turn ("" where there is none): what filters and leak checks look at."""
        return next((turn.content for turn in reversed(self.messages) if turn.role == "user"), "")

    @property
    def sampled(self) -> bool:
        """Whether the undefended model wrote the answer (or more): such text is shown nowhere."""
        return SAMPLED in (self.source or "")

    @property
    def prompt_characters(self) -> int:
        """Length of all turns of the prompt: one long conversation makes a whole batch as wide as itself."""
        return sum(len(turn.content) for turn in self.prompt)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any], where: str = "") -> Record:
        """Build a record from a JSONL row. Raises nothing: odd values are kept for `validation` to report."""
        return cls(
            messages=tuple(_message(turn) for turn in _items(row.get("messages"))),
            label=row.get("label"),
            response_label=row.get("response_label"),
            spans=tuple(_span(span) for span in _items(row.get("spans"))),
            id=row.get("id"),
            source=row.get("source"),
            category=row.get("category"),
            where=where,
            complete=row.get("complete", True),
            learn=row.get("learn", True),
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSONL row: `from_dict(r.to_dict(), r.where) == r`; unset fields are left out."""
        row: dict[str, Any] = {"messages": [turn._asdict() for turn in self.messages]}
        if self.spans:
            row["spans"] = [{"start": s.start, "end": s.end, "label": s.label} for s in self.spans]
        row |= {key: False for key in ("complete", "learn") if not getattr(self, key)}
        optional = ("label", "response_label", "id", "source", "category")
        return row | {key: getattr(self, key) for key in optional if getattr(self, key) is not None}


def _items(value: Any) -> Sequence[Any]:
    if value is None or isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
        return ()
    return tuple(value)


def _message(turn: Any) -> Message:
    if isinstance(turn, Message):
        return turn
    row = turn if isinstance(turn, Mapping) else {}
    return Message(row.get("role", ""), row.get("content", ""))


def _span(span: Any) -> LabelledSpan:
    if isinstance(span, LabelledSpan):
        return span
    row = span if isinstance(span, Mapping) else {}
    return LabelledSpan(row.get("start", -1), row.get("end", -1), row.get("label", ""))
