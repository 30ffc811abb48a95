"""A guard that runs anywhere: a logistic regression on sentence embeddings of labelled requests.

Limits. It knows the kinds of harm and of harmlessness that its examples show, in their language; it was shown
requests, and of a document it judges stretches of about a request's length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch

from safealign.judges.linear import LogisticProbe

Encode = Callable[[list[str]], torch.Tensor]
STRETCH = 1000  # characters of a text judged at once: about what the encoder reads
_L2 = 100.0


def fingerprint(texts: Sequence[str], malicious: Sequence[bool]) -> str:
    """A name that is the same for guards fitted on the same examples alone: what they find may be kept under it."""
    digest = hashlib.sha256(repr((list(texts), list(malicious), _L2, STRETCH)).encode())
    return f"embedding-{digest.hexdigest()[:24]}"


def worst_stretch(texts: Sequence[str], judge: Callable[[list[str]], torch.Tensor]) -> torch.Tensor:
    """Of each text the largest of what `judge` finds in its stretches, `[N]`; blank ones beside others are left out."""
    cut = [[text[at : at + STRETCH] for at in range(0, max(1, len(text)), STRETCH)] for text in texts]
    cut = [[piece for piece in pieces if piece.strip()] or pieces[:1] for pieces in cut]
    if not cut:
        return torch.empty(0)
    found = judge([piece for pieces in cut for piece in pieces])
    return torch.stack([part.max() for part in found.split([len(pieces) for pieces in cut])])


class EmbeddingGuard:
    """p(harmful) of a text; of a long one the largest over its stretches."""

    def __init__(self, encode: Encode, texts: Sequence[str], malicious: Sequence[bool]) -> None:
        """Fits on `texts`. `encode(texts)` gives one embedding per text, `[N, D]`.

        Raises DataError when one of the two labels is missing.
        """
        self._encode = encode
        self._probe = LogisticProbe().fit(encode(list(texts)), torch.tensor(malicious, dtype=torch.float64), l2=_L2)

    def decision(self, texts: Sequence[str]) -> torch.Tensor:
        """Logits of `texts`, fp64 `[N]`."""
        return worst_stretch(texts, lambda stretches: self._probe.decision(self._encode(stretches)))

    def score_batch(self, texts: Sequence[str]) -> list[float]:
        """Probabilities in [0, 1] that the texts are harmful."""
        found: list[float] = self.decision(texts).sigmoid().tolist()
        return found

    def score(self, prompt: str, response: str | None = None) -> float:
        """Probability that `prompt` is harmful, or, when given, that `response` is."""
        return self.score_batch([prompt if response is None else response])[0]
