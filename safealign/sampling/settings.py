"""What is sampled, how much and how: the keys of `data.sampling`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingSettings:
    """How much is sampled and how; lengths in tokens. What shapes a kind of text is part of its cache key.

    Counts: `everyday` requests with answers; `compliant` answers to malicious requests; `answers` to benign requests
    without one; `distilled` answers in place of those that benign requests came with; `deep` long answers to requests
    of each label, written `deep_chunk` tokens at a time, with repetitions penalised, or a small model would go round in
    circles; `splices` and `benign_splices`: answers that turn harmful, or to another harmless answer, after at most
    `splice_opening` tokens. `guard`: who has to agree with a label, p(harmful) from `guard_threshold` on being harmful.
    """

    everyday: int = 400
    everyday_max_new_tokens: int = 48
    compliant: int = 200
    compliant_max_new_tokens: int = 48
    answers: int = 100
    answers_max_new_tokens: int = 48
    distilled: int = 0
    distilled_max_new_tokens: int = 128
    deep: int = 0
    deep_max_new_tokens: int = 256
    deep_chunk: int = 64
    deep_repetition_penalty: float = 1.1
    splices: int = 0
    benign_splices: int = 0
    splice_opening: int = 40
    guard: str = "none"
    guard_threshold: float = 0.5
    batch_size: int = 64
    temperature: float = 1.0
    top_k: int = 100
    seed: int = 0
