"""What an attack is: it rewrites a conversation before the model under test sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from safealign.data.records import Message
from safealign.errors import DataError


class Attack(Protocol):
    """Turns the messages of a request into the messages of the attack; deterministic for equal input."""

    @property
    def name(self) -> str:
        """Short name for tables and files, such as `prefill_10`."""
        ...

    def apply(self, messages: Sequence[Message], target: str | None = None) -> tuple[Message, ...]:
        """The attacked conversation.

        Args:
            messages: a conversation that ends with a user turn.
            target: the wanted opening of the answer, where the data set gives one; attacks may ignore it.

        Raises:
            DataError: the conversation does not end with a user turn.
        """
        ...


def user_request(messages: Sequence[Message]) -> str:
    """Text of the last turn, which must be the user's.

    Raises:
        DataError: it is not.
    """
    if not messages or messages[-1].role != "user":
        role = messages[-1].role if messages else "no"
        raise DataError(f"attack: the conversation must end with a user turn, it ends with {role} turn; cut the answer")
    return messages[-1].content
