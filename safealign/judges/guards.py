"""The judges of this room behind the guard's protocol, for answers to requests whose labels are known."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import torch

from safealign.errors import DataError
from safealign.judges.harm_answer import attack_succeeded
from safealign.judges.linear import PENALTY_PER_TEXT, LogisticProbe
from safealign.judges.refusal import RefusalMatcher

Encode = Callable[[list[str]], torch.Tensor]


class RuleGuard:
    """Rules: p = 1 for a request known to be malicious and for an answer that goes along with one, else 0.

    Limits: those of `harm_answer`, since it never reads what is said; a request that it does not know counts as benign.
    """

    def __init__(self, malicious: Iterable[str], matcher: RefusalMatcher | None = None) -> None:
        """`malicious`: the requests that are."""
        self._malicious = frozenset(malicious)
        self._matcher = matcher or RefusalMatcher()

    def score(self, prompt: str, response: str | None = None) -> float:
        """1.0 or 0.0."""
        if prompt not in self._malicious:
            return 0.0
        return 1.0 if response is None else float(attack_succeeded(response, matcher=self._matcher))


class ProbeGuard:
    """A logistic regression on sentence embeddings of requests, and one of answers, whose labels are known.

    Limits: it knows the kinds of harm and of harmlessness that its texts show, in their language, and the encoder reads
    the beginning of a long answer only.
    """

    def __init__(
        self, encode: Encode, requests: Sequence[tuple[str, bool]], answers: Sequence[tuple[str, bool]]
    ) -> None:
        """Fits on `(text, harmful)`. Raises DataError where harmful or harmless ones are missing."""
        self._encode = encode
        self._requests, self._answers = self._fitted("requests", requests), self._fitted("answers", answers)

    def score(self, prompt: str, response: str | None = None) -> float:
        """Probability that the request is harmful or, when given, that the answer is."""
        probe, text = (self._requests, prompt) if response is None else (self._answers, response)
        return float(probe.decision(self._encode([text])).sigmoid())

    def _fitted(self, what: str, texts: Sequence[tuple[str, bool]]) -> LogisticProbe:
        if len({harmful for _, harmful in texts}) < 2:
            raise DataError(
                f"a guard cannot be fitted, since no harmful or no harmless {what} are in the sources: set "
                "data.sampling.guard=rules"
            )
        labels = torch.tensor([float(harmful) for _, harmful in texts])
        embedded = self._encode([text for text, _ in texts])
        return LogisticProbe().fit(embedded, labels, l2=PENALTY_PER_TEXT * len(texts))


def fingerprint(*texts: Iterable[object]) -> str:
    """A short digest of what a guard was given, for the key of a cache."""
    return hashlib.sha256(repr([list(some) for some in texts]).encode()).hexdigest()[:24]
