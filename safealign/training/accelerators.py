"""What TRL gets in place of its accelerator where its own answer would not do with several ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class StandIn:
    """An accelerator in all but what a subclass says."""

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self.accelerator, name)


class EveryRankWrites(StandIn):
    """For a result that all ranks hold, and the main one writes to a temporary folder of its own for all to read.

    The others would not find it there: each writes and reads its own.
    """

    is_main_process = True


@contextmanager
def standing_in(trainer: Any, stand_in: type[StandIn]) -> Iterator[None]:
    """While open, `trainer.accelerator` is `stand_in`'s."""
    accelerator = trainer.accelerator
    trainer.accelerator = stand_in(accelerator)
    try:
        yield
    finally:
        trainer.accelerator = accelerator
