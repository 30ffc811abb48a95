"""Token ids to text as they come: whole characters only, spaces as in the whole text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class TextStream:
    """Decodes a growing sequence of ids. The pieces, joined, are the text of all ids.

    `context`: ids that come before and are not part of the text (a caller's prefix), so that a first space is
    kept. Special tokens have no text. A character whose bytes are not complete is held back.
    """

    def __init__(self, tokenizer: Any, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(context[-8:])
        self._start = 0  # of the ids that are decoded again, so that spaces come out right
        self._done = len(self._ids)

    def push(self, ids: Sequence[int]) -> str:
        """New text that these ids complete; "" while a character is incomplete."""
        self._ids += ids
        before, after = self._decode(self._start, self._done), self._decode(self._start, len(self._ids))
        if len(after) <= len(before) or after.endswith("\ufffd"):
            return ""
        self._start, self._done = self._done, len(self._ids)
        return after[len(before) :]

    def finish(self) -> str:
        """What is left, incomplete characters as U+FFFD."""
        before, after = self._decode(self._start, self._done), self._decode(self._start, len(self._ids))
        self._start, self._done = self._done, len(self._ids)
        return after[len(before) :]

    def _decode(self, start: int, end: int) -> str:
        text: str = self._tokenizer.decode(
            self._ids[start:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def text_of(tokenizer: Any, ids: Sequence[int], context: Sequence[int] = ()) -> str:
    """The text of `ids` after `context`."""
    stream = TextStream(tokenizer, context)
    return stream.push(ids) + stream.finish()
