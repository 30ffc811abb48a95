"""The exceptions of safealign: each message says what is wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Sequence


class SafealignError(Exception):
    """Base of every error that a user can mend; commands print its text and exit non-zero."""


class ConfigError(SafealignError):
    """A configuration key or value that cannot be used."""


class AssetError(SafealignError):
    """A model or data set that cannot be found, fetched or verified."""


class CheckpointError(SafealignError):
    """A checkpoint or export that is incomplete, damaged or of another format."""


class DivergedError(SafealignError):
    """Training came to a loss or gradient that is no number; the weights are as they were before that step."""


class PreemptedError(SafealignError):
    """The scheduler took the machine away; what was done is saved, and the same command goes on from there."""


class UnsupportedModelError(SafealignError):
    """A model that cannot express the safety token's attention mask."""


class DataError(SafealignError):
    """One or more bad rows; `problems` holds one line per fault, each naming its file and row."""

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        self.problems = tuple(problems)
        shown = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"{message}\n{shown}" if shown else message)


class RankError(SafealignError):
    """Processes of one job that do not fit together: a wrong world, other settings, or one that has failed."""
