"""No attack: the request as it is."""

from __future__ import annotations

from collections.abc import Sequence

from safealign.data.records import Message
from safealign.evaluation.attacks.protocol import user_request


class DirectAttack:
    """The conversation unchanged: what every other attack is compared with."""

    name = "direct"

    def apply(self, messages: Sequence[Message], target: str | None = None) -> tuple[Message, ...]:
        """The messages themselves; `target` is ignored. Raises DataError as the protocol says."""
        user_request(messages)
        return tuple(messages)
