"""The processes of one job as they see each other: agree, go first, wait, hand tensors on, fail together.

Messages go through torch's key-value store, which rank 0 or torchrun's agent holds; it needs no accelerator and no
collective, so a rank can wait for hours without a timeout of the communication library.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from safealign.errors import RankError
from safealign.ranks.lifeline import Lifeline
from safealign.ranks.world import World

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
_FAILED, _LEFT = "failed", "left"
_POLL = 0.2  # seconds


class Ranks:
    """All ranks of a job from one rank's side; without a store it is a single process and everything is at once.

    `line`: by which it is missed when it dies, and misses others.
    """

    def __init__(self, world: World, store: Any = None, line: Lifeline | None = None) -> None:
        self.world, self.store, self.line = world, store, line
        self._stages = 0

    @property
    def first(self) -> bool:
        """Is this rank 0?"""
        return self.world.rank == 0

    @property
    def several(self) -> bool:
        """Is there more than one?"""
        return self.store is not None

    def agree(self, what: str, values: Mapping[str, str]) -> None:
        """Raises RankError on every rank, naming the first key that differs, unless all hold rank 0's `values`."""
        if not self.several:
            return
        if self.first:
            self.store.set(what, json.dumps(dict(values)))
            answers = [self.wait(f"{what}/{rank}") for rank in range(1, self.world.size)]
            verdict = next((answer for answer in answers if answer), "")
            self.store.set(f"{what}/verdict", verdict)
        else:
            theirs = json.loads(self.wait(what))
            self.store.set(f"{what}/{self.world.rank}", _difference(what, self.world, dict(values), theirs))
            verdict = self.wait(f"{what}/verdict")
        if verdict:
            raise RankError(verdict)

    def first_then_others(self, action: Callable[[], T]) -> T:
        """Rank 0 does it (and fills caches); when it is through, the others do it too (and find them filled)."""
        if not self.several:
            return action()
        key = self._stage()
        if not self.first:
            self.wait(key)
            return action()
        result = action()
        self.store.set(key, "")
        return result

    def only_first(self, action: Callable[[], bool]) -> bool:
        """Rank 0 does it; every rank gets its answer."""
        if not self.several:
            return action()
        key = self._stage()
        if not self.first:
            return self.wait(key) == "yes"
        done = action()
        self.store.set(key, "yes" if done else "no")
        return done

    def from_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrites the tensors of every rank with rank 0's, in place; all ranks call it with the same shapes."""
        if not self.several:
            return
        import torch

        with torch.no_grad():
            for tensor in tensors:
                # Booleans travel as bytes: not every backend knows them.
                plain = tensor.data.to(torch.uint8) if tensor.dtype is torch.bool else tensor.data.contiguous()
                torch.distributed.broadcast(plain, 0)
                tensor.data.copy_(plain.to(tensor.dtype))

    def wait(self, key: str) -> str:
        """The text under `key`, as soon as a rank has set it. Raises RankError when one has failed or gone."""
        from torch.distributed import DistError

        try:
            # Asked for again and again rather than waited for: torch warns of every wait that runs out.
            while not self.store.check([key]):
                if self.verdict():
                    raise RankError(f"stopped, because {self.verdict()}")
                if self.store.check([_FAILED]):
                    self.leave()
                    raise RankError(f"stopped, because {self._text(_FAILED)}")
                time.sleep(_POLL)
            return self._text(key)
        except (DistError, RuntimeError) as error:
            why = self.verdict(seconds=2.0) or "rank 0 has gone: its own last lines say why"
            raise RankError(f"stopped, because {why}") from error

    def fail(self, reason: str) -> None:
        """Tells the other ranks why this one stops; the first reason stays."""
        if not self.several:
            return
        sentence = f"{self.world.name} failed: {reason}"
        if self.line is not None:
            self.line.tell(sentence)
        with suppress(RuntimeError):  # the store may be what has failed
            if not self.store.check([_FAILED]):
                self.store.set(_FAILED, sentence)
                self.leave(seconds=5.0)

    def verdict(self, seconds: float = 0.0) -> str:
        """Why the job cannot go on, because of another rank; waits up to `seconds` for it, and is mostly empty."""
        return "" if self.line is None else self.line.verdict(seconds)

    def close(self) -> None:
        """Nobody misses this rank from now on."""
        if self.line is not None:
            self.line.close()

    def finish(self) -> None:
        """Waits for rank 0's last word: the other ranks are done long before it has calibrated and exported."""
        if not self.several:
            return
        if self.first:
            self.store.set("finished", "")
            self.leave(seconds=60.0)
        else:
            if self.line is not None:
                self.line.part()  # rank 0 needs this one no more, and goes on without it
            self.wait("finished")
            self.leave()

    def leave(self, seconds: float = 0.0) -> None:
        """Says that this rank needs the store no more; rank 0, which may hold it, stays until all have."""
        left = self.store.add(_LEFT, 1)
        deadline = time.monotonic() + seconds
        while self.first and left < self.world.size and time.monotonic() < deadline:
            time.sleep(0.05)
            left = self.store.add(_LEFT, 0)

    def _stage(self) -> str:
        self._stages += 1
        return f"stage/{self._stages}"

    def _text(self, key: str) -> str:
        found: bytes = self.store.get(key)
        return found.decode("utf-8")


def _difference(what: str, world: World, mine: dict[str, str], theirs: dict[str, str]) -> str:
    """One sentence on the first key that differs from rank 0's, or nothing."""
    keys = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
    if not keys:
        return ""
    key, absent = keys[0], "nothing"
    more = f" ({len(keys) - 1} more differ)" if len(keys) > 1 else ""
    return (
        f"the ranks have not the same {what}: {key} is {mine.get(key, absent)} on {world.name} and "
        f"{theirs.get(key, absent)} on rank 0{more}; start every rank with the same arguments, files and versions"
    )


_CURRENT: list[Ranks] = []


def current() -> Ranks:
    """The ranks of the job that runs; a single process where none has been joined."""
    return _CURRENT[-1] if _CURRENT else Ranks(World())


def enter(ranks: Ranks) -> None:
    """Makes `ranks` the current ones."""
    _CURRENT.append(ranks)


def exit_current() -> None:
    """Back to what was before `enter`."""
    _CURRENT.pop()
