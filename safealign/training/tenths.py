"""Progress of a long job in ten lines at most."""

from __future__ import annotations

from collections.abc import Callable


class Tenths:
    """Says when another tenth of `total` is done."""

    def __init__(self, what: str, total: int, say: Callable[[str], None]) -> None:
        self.what, self.total, self.say, self.done = what, total, say, 0

    def add(self, n: int) -> None:
        """`n` more are done."""
        before, self.done = self.done, self.done + n
        if self.total and before * 10 // self.total < self.done * 10 // self.total:
            self.say(f"  {self.what}: {self.done} of {self.total}")
