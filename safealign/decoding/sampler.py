"""Choosing the next token, greedily or with noise that belongs to the row and the step alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from safealign.decoding.nucleus import nucleus
from safealign.decoding.options import DecodingOptions

_NO_IDS: Any = torch.empty(1, 0, dtype=torch.long)  # for processors that look at scores alone


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


@dataclass(frozen=True, slots=True)
class Draw:
    """One row about to generate a token: its options, its noise, the ids so far."""

    options: DecodingOptions
    noise: RowNoise
    generated: Sequence[int]
    prompt: Sequence[int] = ()

    @property
    def step(self) -> int:
        """The step to be generated, from 1."""
        return len(self.generated) + 1

    @property
    def is_plain(self) -> bool:
        """Whether the likeliest token of the unchanged logits is wanted."""
        options = self.options
        early = self.step <= options.min_new_tokens
        return options.temperature == 0.0 and options.repetition_penalty == 1.0 and not early


class Sampler:
    """Each row by its own options: repetition penalty, temperature, top-k, top-p and min-p are transformers' own
    processors, in its order; `temperature` 0 is greedy.
    """

    def __init__(self, eos_ids: Iterable[int] = ()) -> None:
        self._eos = sorted(eos_ids)

    def choose(self, logits: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
        """Token ids for the rows of `logits` `[N, V]`; row i is drawn as `draws[i]` says."""
        groups = _grouped(draws)
        every_row_drawn = sum(map(len, groups.values())) == len(draws)
        chosen: list[int] = [0] * len(draws) if every_row_drawn else logits.argmax(dim=-1).tolist()
        for settings, rows in groups.items():
            scores = self._penalised(logits[rows], [draws[row] for row in rows])
            found = scores.argmax(dim=-1).tolist() if settings[0] == 0.0 else _drawn(scores, settings, draws, rows)
            for row, token in zip(rows, found, strict=True):
                chosen[row] = token
        return chosen

    def _penalised(self, scores: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
        """Scores `[N, V]` of rows drawn as `draws` say, changed in place."""
        for place, draw in enumerate(draws):
            if draw.options.repetition_penalty != 1.0 or draw.step <= draw.options.min_new_tokens:
                scores[place] = self._penalised_row(scores[place], draw)
        return scores

    def _penalised_row(self, logits: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Logits `[V]` with repetitions penalised and, before `min_new_tokens`, no end of turn."""
        if draw.options.repetition_penalty != 1.0:
            ids = torch.tensor([[*draw.prompt, *draw.generated]], device=logits.device)
            penalise = RepetitionPenaltyLogitsProcessor(draw.options.repetition_penalty)
            logits = penalise(ids, logits.unsqueeze(0))[0]
        if draw.step <= draw.options.min_new_tokens and self._eos:
            logits = logits.clone()
            logits[self._eos] = -torch.inf
        return logits


_Settings = tuple[float, int, float, float]


def _grouped(draws: Sequence[Draw]) -> dict[_Settings, list[int]]:
    """Rows that need more than an argmax, by the settings that they share."""
    groups: dict[_Settings, list[int]] = {}
    for row, draw in enumerate(draws):
        if not draw.is_plain:
            o = draw.options
            groups.setdefault((o.temperature, o.top_k, o.top_p, o.min_p), []).append(row)
    return groups


@lru_cache(maxsize=64)
def _before(temperature: float, top_k: int) -> LogitsProcessorList:
    """Processors that come before top-p."""
    found = LogitsProcessorList()
    if temperature != 1.0:
        found.append(TemperatureLogitsWarper(temperature))
    if top_k:
        found.append(TopKLogitsWarper(top_k))
    return found


def _drawn(scores: torch.Tensor, settings: _Settings, draws: Sequence[Draw], rows: Sequence[int]) -> list[int]:
    """One token for each row of `scores`, with its own number; the same as with transformers' top-p over all tokens."""
    temperature, top_k, top_p, min_p = settings
    scores = _before(temperature, top_k)(_NO_IDS, scores)
    at = [draws[row].noise.at(draws[row].step) for row in rows]
    numbers = torch.tensor(at, dtype=torch.float64, device=scores.device)
    if top_p == 1.0:
        return _picked(scores, numbers, min_p).tolist()
    short, ids, whole = nucleus(scores, top_p)
    found = ids.gather(-1, _picked(short, numbers, min_p).unsqueeze(-1)).squeeze(-1)
    if not whole.all():
        rest = TopPLogitsWarper(top_p)(_NO_IDS, scores[~whole])
        found[~whole] = _picked(rest, numbers[~whole], min_p)
    return found.tolist()


def _picked(scores: torch.Tensor, numbers: torch.Tensor, min_p: float) -> torch.Tensor:
    """Inverse-transform sampling in fp64: the column of each row that its number in [0, 1) falls to."""
    if min_p:
        scores = MinPLogitsWarper(min_p)(_NO_IDS, scores)
    cumulative = torch.softmax(scores.double(), dim=-1).cumsum(dim=-1)
    found = torch.searchsorted(cumulative, numbers.unsqueeze(-1) * cumulative[:, -1:], right=True).squeeze(-1)
    return found.clamp_(max=scores.shape[-1] - 1)
