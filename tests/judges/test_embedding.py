"""The embedding guard: a probability for any text, the worst stretch of a long one, a name for what it learnt from."""

from __future__ import annotations

import pytest
import torch

from safealign.errors import DataError
from safealign.judges.embedding import STRETCH, EmbeddingGuard, fingerprint
from safealign.judges.protocol import Guard

TEXTS = [f"sea {i}" for i in range(20)] + [f"deed {i}" for i in range(20)]
MALICIOUS = [False] * 20 + [True] * 20


def encode(texts: list[str]) -> torch.Tensor:
    """Whether a word occurs, and a little of the length: what a sentence encoder would keep apart."""
    return torch.tensor([[float("deed" in text), len(text) % 7 / 100] for text in texts])


@pytest.fixture(scope="module")
def guard() -> EmbeddingGuard:
    return EmbeddingGuard(encode, TEXTS, MALICIOUS)


def test_it_is_a_guard_and_tells_its_examples_apart(guard: EmbeddingGuard) -> None:
    assert isinstance(guard, Guard)
    assert guard.score("a deed") > 0.5 > guard.score("the sea")
    assert guard.score("the sea", "a deed") == pytest.approx(guard.score("a deed"))


def test_a_batch_is_what_its_texts_are_alone(guard: EmbeddingGuard) -> None:
    texts = ["the sea", "", "a deed", "neither"]
    assert guard.score_batch(texts) == pytest.approx([guard.score(text) for text in texts])
    assert guard.score_batch([]) == []


@pytest.mark.parametrize("place", [0, STRETCH, 5 * STRETCH])
def test_one_bad_stretch_makes_a_long_text_bad(guard: EmbeddingGuard, place: int) -> None:
    calm = "the sea " * (6 * STRETCH // 8)
    assert guard.score(calm) < 0.5 < guard.score(calm[:place] + "a deed " + calm[place:])


def test_both_labels_are_needed() -> None:
    with pytest.raises(DataError, match="both classes"):
        EmbeddingGuard(encode, TEXTS[:20], MALICIOUS[:20])


def test_the_name_follows_the_examples() -> None:
    assert fingerprint(TEXTS, MALICIOUS) == fingerprint(list(TEXTS), list(MALICIOUS))
    assert fingerprint(TEXTS[:-1], MALICIOUS[:-1]) != fingerprint(TEXTS, MALICIOUS)
    assert fingerprint(TEXTS, MALICIOUS[::-1]) != fingerprint(TEXTS, MALICIOUS)
