"""Jailbreak templates around requests of both labels: what the wrapper alone does is part of the answer."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from safealign.data.records import Message
from safealign.data.wrapping import Template, wrap
from safealign.errors import DataError
from safealign.evaluation.attacks.protocol import user_request


class WrappedAttack:
    """The newest user turn inside a template; each request meets one template, chosen by its own text.

    Wrap requests of both labels with the same attack: otherwise the wrapper itself tells harm from good.
    """

    name = "wrapped"

    def __init__(self, templates: Sequence[Template], max_words: int | None = None, seed: int = 0) -> None:
        """`templates`: each with a `{{ prompt }}` placeholder; `max_words` crops long ones around it.

        Raises:
            DataError: no templates.
        """
        if not templates:
            raise DataError("wrapped: no templates; pass the held-out side of data.wrapping.split")
        self._templates = tuple(templates)
        self._max_words = max_words
        self._seed = seed

    def apply(self, messages: Sequence[Message], target: str | None = None) -> tuple[Message, ...]:
        """The messages, last turn wrapped; `target` is ignored. Raises DataError as the protocol says."""
        request = user_request(messages)
        template = self.template_of(request)
        text = wrap(request, template, self._max_words, random.Random(f"{self._seed}/{template.slug}/{request}"))
        return (*messages[:-1], Message("user", text))

    def template_of(self, request: str) -> Template:
        """The template that this request meets."""
        digest = hashlib.sha256(f"{self._seed}/{request}".encode()).digest()
        return self._templates[int.from_bytes(digest[:8], "big") % len(self._templates)]
