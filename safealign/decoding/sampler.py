"""Choosing the next token, greedily or with noise that belongs to the row and the step alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper


class RowNoise:
    """Uniform numbers of one row, one for each step, from a generator of its own.

    Numbers are indexed by step, so withdrawing tokens rolls the sampler back, and neighbours cannot matter.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed % 2**63)
        self._numbers = torch.empty(0, dtype=torch.float64)

    def at(self, step: int) -> float:
        """The number of `step` (from 1) in [0, 1)."""
        while step > len(self._numbers):
            more = torch.rand(64, generator=self._generator, dtype=torch.float64)
            self._numbers = torch.cat([self._numbers, more])
        return float(self._numbers[step - 1])


class Sampler:
    """`temperature` 0 is greedy; else temperature, top-k and top-p by transformers' own processors, in that
    order.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_new_tokens: int = 0,
        eos_ids: Iterable[int] = (),
    ) -> None:
        self.greedy = temperature == 0.0
        self.min_new_tokens = min_new_tokens
        self._eos = torch.tensor(sorted(eos_ids), dtype=torch.long)
        self._processors = LogitsProcessorList()
        if not self.greedy and temperature != 1.0:
            self._processors.append(TemperatureLogitsWarper(temperature))
        if top_k:
            self._processors.append(TopKLogitsWarper(top_k))
        if top_p < 1.0:
            self._processors.append(TopPLogitsWarper(top_p))

    def choose(self, logits: torch.Tensor, steps: Sequence[int], noise: Sequence[RowNoise]) -> list[int]:
        """Token ids for the rows of `logits` `[N, V]`, row i being about to generate its step `steps[i]`."""
        early = [i for i, step in enumerate(steps) if step <= self.min_new_tokens]
        if early and len(self._eos):
            logits = logits.clone()
            logits[torch.tensor(early)[:, None], self._eos] = -torch.inf
        if self.greedy:
            return [int(token) for token in logits.argmax(dim=-1).tolist()]
        no_ids: Any = torch.empty(len(logits), 0, dtype=torch.long)  # these processors look at scores alone
        scores = self._processors(no_ids, logits)
        cumulative = torch.softmax(scores.double(), dim=-1).cumsum(dim=-1)
        numbers = [row.at(step) for row, step in zip(noise, steps, strict=True)]
        drawn = torch.tensor(numbers, dtype=torch.float64, device=logits.device).unsqueeze(-1) * cumulative[:, -1:]
        found = torch.searchsorted(cumulative, drawn, right=True).squeeze(-1)
        return [int(token) for token in found.clamp_(max=logits.shape[-1] - 1).tolist()]
