"""Best of m: how many answers are drawn and how, and what was found of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from safealign.decoding import DecodingOptions
from safealign.errors import ConfigError, DataError
from safealign.ranking.picking import best

# How answers are drawn where neither the caller nor the ranker says so.
DRAWING = {"temperature": 1.0, "top_p": 0.95}


@dataclass(frozen=True)
class Ranking:
    """`scores` of answers in the order in which they were given, higher is better."""

    scores: tuple[float, ...]

    @property
    def best(self) -> int:
        """Index of the chosen answer, the first of equal ones."""
        return best(self.scores)

    @property
    def order(self) -> tuple[int, ...]:
        """Indices from the best answer to the worst."""
        return tuple(sorted(range(len(self.scores)), key=lambda i: -self.scores[i]))


def require_count(best_of: Any) -> int:
    """`best_of`, if it is a whole number from 1 on; else raises ConfigError."""
    if isinstance(best_of, bool) or not isinstance(best_of, int) or best_of < 1:
        raise ConfigError(f"best_of must be a whole number, at least 1, got {best_of!r}")
    return best_of


def require_answers(answers: Any) -> list[str]:
    """Answers to rank, each a text; else raises DataError."""
    if isinstance(answers, str | Mapping) or not isinstance(answers, Sequence) or not answers:
        raise DataError("answers to rank are a list of one text or more")
    for index, text in enumerate(answers):
        if not isinstance(text, str):
            raise DataError(f"answer {index} to rank is no text but {type(text).__name__}: pass a list of texts")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise DataError(f"answer {index} to rank holds half a surrogate pair, not valid Unicode: remove it")
    return list(answers)


def drawing(default: DecodingOptions, given: Mapping[str, Any], ranker: Mapping[str, Any] | None) -> DecodingOptions:
    """The options under which answers are drawn, for several that differ.

    Where the caller gives no temperature and the model's own is greedy, that of the ranker's training is taken
    (`ranker`: its block of `safety.json`). Raises ConfigError for a temperature of 0 that the caller asks for.
    """
    chosen = default.override(given)
    if chosen.temperature > 0:
        return chosen
    if "temperature" in given:
        raise ConfigError("best_of draws several answers, and at temperature=0 they are all the same: give another")
    own = {**DRAWING, **(ranker or {}).get("sampling", {})}
    wanted = {name: float(own[name]) for name in DRAWING if name not in given}
    return replace(chosen, **wanted)  # type: ignore[arg-type]
