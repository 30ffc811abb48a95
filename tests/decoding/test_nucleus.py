"""Top-p over the likeliest tokens: the tokens that transformers keeps, and the same draws."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from safealign.decoding.nucleus import HEAD, nucleus
from safealign.decoding.options import DecodingOptions
from safealign.decoding.sampler import Draw, RowNoise, Sampler

VOCABULARY = 4 * HEAD


def _scores(sharpness: float, n: int = 6, vocabulary: int = VOCABULARY) -> torch.Tensor:
    """Distinct logits, so that no sorting has a choice, in fp64, so that rounding decides on no token."""
    noise = torch.randn(n, vocabulary, generator=torch.Generator().manual_seed(int(100 * sharpness)))
    return (sharpness * noise).double().add(torch.arange(vocabulary) * 1e-9)


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("sharpness", [0.0, 0.5, 2.0, 5.0, 20.0])
@pytest.mark.parametrize("vocabulary", [7, HEAD, VOCABULARY])
def test_the_kept_tokens_are_those_of_transformers(top_p: float, sharpness: float, vocabulary: int) -> None:
    scores = _scores(sharpness, vocabulary=vocabulary)
    if sharpness == 0.0:  # flat: all tokens are equal, whose number is all that can be compared
        scores = torch.zeros_like(scores)
    best, ids, whole = nucleus(scores, top_p)
    for row, kept in enumerate(TopPLogitsWarper(top_p)(None, scores).isfinite()):
        if not whole[row]:
            assert kept.sum() > HEAD or vocabulary <= HEAD
            continue
        mine = ids[row][best[row].isfinite()]
        assert abs(len(mine) - int(kept.sum())) <= (1 if sharpness == 0.0 else 0)
        if sharpness:
            assert mine.tolist() == kept.nonzero().squeeze(-1).tolist()


def test_flat_rows_are_left_to_a_whole_sort_and_sharp_ones_are_not() -> None:
    scores = torch.cat([_scores(0.1, 2), _scores(9.0, 2)])
    assert nucleus(scores, 0.95)[2].tolist() == [False, False, True, True]


@pytest.mark.parametrize("how", [(1.0, 0, 0.95, 0.0), (0.7, 0, 0.8, 0.05), (1.3, 50, 0.9, 0.0), (1.0, 0, 1.0, 0.02)])
def test_every_draw_is_that_of_all_tokens_sorted(how: tuple[float, int, float, float]) -> None:
    temperature, top_k, top_p, min_p = how
    options = DecodingOptions(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    scores = torch.cat([_scores(sharpness, 8) for sharpness in (0.2, 1.0, 3.0, 8.0)])
    processors = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    processors += [TopKLogitsWarper(top_k)] if top_k else []
    processors += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    processors += [MinPLogitsWarper(min_p)] if min_p else []
    cumulative = processors(None, scores).double().softmax(-1).cumsum(-1)
    for seed in range(20):
        noise = [RowNoise(seed * 100 + row) for row in range(len(scores))]
        numbers = torch.tensor([one.at(1) for one in noise], dtype=torch.float64)[:, None]
        wanted = torch.searchsorted(cumulative, numbers * cumulative[:, -1:], right=True).squeeze(-1)
        draws = [Draw(options, one, ()) for one in noise]
        assert Sampler().choose(scores, draws) == wanted.tolist()


def test_a_row_is_drawn_alike_beside_flat_and_sharp_ones() -> None:
    options = DecodingOptions(temperature=1.0, top_p=0.95)
    scores = torch.cat([_scores(0.2, 4), _scores(4.0, 4)])
    draws = [Draw(options, RowNoise(row), ()) for row in range(len(scores))]
    together = Sampler().choose(scores, draws)
    assert together == [Sampler().choose(scores[row : row + 1], [draws[row]])[0] for row in range(len(scores))]
