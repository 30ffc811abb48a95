"""Stop strings: texts that end an answer and are no part of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class StopStrings:
    """Finds stop strings in text and in newly generated ids."""

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self._tokenizer, self.stops = tokenizer, tuple(stops)
        # A token has at least one byte of text, or none at all (special tokens, which end answers or never come).
        self._reach = max((len(stop.encode()) for stop in self.stops), default=0) + 8

    def hit(self, tokens: Sequence[int], after: int = 0) -> bool:
        """Whether the last of these ids completes a stop string; in the first `after` none counts."""
        if not self.stops:
            return False
        start = max(0, len(tokens) - self._reach - 1)
        # Decoded as what follows something, where it does, so that a space at the seam is seen.
        tail = self._decode(tokens[start:])[len(self._decode(tokens[start:after])) :]
        return any(stop in tail for stop in self.stops)

    def cut(self, text: str) -> str:
        """`text` up to the stop string that was complete first (the longest of them), as one who streams sees it."""
        found = [(at + len(stop), at) for stop in self.stops if (at := text.find(stop)) >= 0]
        return text[: min(found)[1]] if found else text

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True) if tokens else ""
        return text

    def held(self, text: str) -> int:
        """How many characters at the end of `text` may be the beginning of a stop string."""
        longest = max((len(stop) for stop in self.stops), default=1) - 1
        sizes = range(min(longest, len(text)), 0, -1)
        return next((n for n in sizes if any(stop.startswith(text[-n:]) for stop in self.stops)), 0)


class StopFilter:
    """Streamed text without stop strings: what may begin one is held back until it is known."""

    def __init__(self, stops: StopStrings) -> None:
        self._stops, self._held, self._over = stops, "", False

    def push(self, text: str) -> str:
        """The part of all text so far that is certain and was not returned before."""
        if self._over:
            return ""
        whole = self._held + text
        kept = self._stops.cut(whole)
        self._over = len(kept) < len(whole)
        held = 0 if self._over else self._stops.held(whole)
        self._held = kept[len(kept) - held :] if held else ""
        return kept[: len(kept) - held] if held else kept

    def spare(self, text: str) -> str:
        """What was held back, then `text`, in which no stop string counts; the search begins anew after it."""
        rest, self._held = self._held, ""
        return rest + text

    def finish(self) -> str:
        """What was held back and turned out to be no stop string."""
        rest, self._held = self._held, ""
        return "" if self._over else rest
