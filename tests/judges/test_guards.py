"""The judges as guards: rules for known requests, a regression on embeddings."""

from __future__ import annotations

import pytest
import torch

from safealign.errors import DataError
from safealign.judges.guards import ProbeGuard, RuleGuard, fingerprint
from safealign.judges.protocol import Guard

GOES_ALONG = "First take the placeholder, then do the deed with both hands, and at last clean up after it."


def _encode(texts: list[str]) -> torch.Tensor:
    """Letters a and z, and the length."""
    return torch.tensor([[float(text.count("a")), float(text.count("z")), len(text) / 10] for text in texts])


def test_rules_know_the_requests_they_were_given() -> None:
    guard = RuleGuard(["Do the misdeed"])
    assert isinstance(guard, Guard)
    assert (guard.score("Do the misdeed"), guard.score("Fold a kite")) == (1.0, 0.0)
    assert guard.score("Do the misdeed", GOES_ALONG) == 1.0
    assert guard.score("Fold a kite", GOES_ALONG) == 0.0


@pytest.mark.parametrize("answer", ["", "Yes.", "no no " * 30, "I'm sorry, but I cannot help with that at all."])
def test_rules_find_no_harm_in_refusals_and_in_nothing(answer: str) -> None:
    assert RuleGuard(["Do the misdeed"]).score("Do the misdeed", answer) == 0.0


def test_the_probe_tells_apart_what_it_was_shown() -> None:
    requests = [("aaa", False), ("aa", False), ("zzz", True), ("zz", True)]
    answers = [("aza", True), ("azaz", True), ("bab", False), ("ba", False)]
    guard = ProbeGuard(_encode, requests, answers)
    assert isinstance(guard, Guard)
    assert guard.score("zzzz") > 0.5 > guard.score("aaaa")
    assert guard.score("aaaa", "zaza") > 0.5 > guard.score("zzzz", "bb"), "an answer is judged for itself"


@pytest.mark.parametrize("answers", [[], [("a", False), ("b", False)]])
def test_a_probe_without_both_labels_says_what_to_do(answers: list[tuple[str, bool]]) -> None:
    with pytest.raises(DataError, match="harmless answers .* data.sampling.guard=rules"):
        ProbeGuard(_encode, [("a", False), ("z", True)], answers)


def test_a_fingerprint_is_of_texts_and_labels() -> None:
    texts = [("a", False), ("z", True)]
    assert fingerprint(texts) == fingerprint(list(texts)) != fingerprint([("a", True), ("z", True)])
    assert fingerprint(texts, []) != fingerprint(texts)
