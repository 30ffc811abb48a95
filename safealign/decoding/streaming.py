"""Token ids to text as they come: whole characters only, spaces as in the whole text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_PATIENCE = 16  # ids after which nothing is waited for any longer
_CONTEXT = 8  # ids that are decoded again then
_OPEN = 3  # characters U+FFFD at the end that the beginning of one character may look like


class TextStream:
    """Decodes a growing sequence of ids. The pieces, joined, are the text of all ids.

    `context`: ids that come before and are not part of the text (a caller's prefix), so that a first space is
    kept. Special tokens have no text. A character whose bytes are not complete is held back. A push takes the time
    of its own ids, whatever came before: of bytes that make no characters only the newest wait.
    """

    def __init__(self, tokenizer: Any, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(context[-_CONTEXT:])  # decoded again with new ones, so that spaces come out right
        self._done = len(self._ids)  # ids whose text is out
        self._out = len(self._decode())  # characters that are out

    def push(self, ids: Sequence[int]) -> str:
        """New text that these ids complete; "" while a character is incomplete."""
        self._ids += ids
        text = self._decode()
        if len(text) > self._out and not text.endswith("\ufffd"):
            return self._advance(text, self._done)
        if len(self._ids) - self._done <= _PATIENCE:
            return ""
        return self._advance(text, len(self._ids) - _CONTEXT, open_end=True)

    def finish(self) -> str:
        """What is left, incomplete characters as U+FFFD."""
        return self._advance(self._decode(), self._done)

    def _advance(self, text: str, start: int, open_end: bool = False) -> str:
        """Hands out new text, but for what may change at an open end; ids before `start` are not decoded any more."""
        new, self._ids = text[self._out :], self._ids[start:]
        self._done, again = len(self._ids), self._decode()
        held = min(_OPEN, len(again) - len(again.rstrip("\ufffd")), len(new)) if open_end else 0
        self._out = len(again) - held
        return new[: len(new) - held]

    def _decode(self) -> str:
        if not self._ids:
            return ""
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def text_of(tokenizer: Any, ids: Sequence[int], context: Sequence[int] = ()) -> str:
    """The text of `ids` after `context`."""
    stream = TextStream(tokenizer, context)
    return stream.push(ids) + stream.finish()
