"""The ranker: order and padding of candidates, the loss in closed form, a planted direction found again."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from planted import WIDTH, planted

from safealign.errors import ConfigError, DataError
from safealign.objectives.listwise import listwise_kl, pointwise_bce
from safealign.ranking import FitSettings, Ranker, RankerSettings, collate, fit_ranker, picks, score_with
from safealign.ranking.fitting import ranker_loss
from safealign.ranking.lists import drawn
from safealign.ranking.settings import KINDS

SMALL = RankerSettings(hidden=32, heads=4)
QUICK = FitSettings(draws=1, batch_size=16, epochs=6)


def _ranker(kind: str = "listwise", seed: int = 0) -> Ranker:
    torch.manual_seed(seed)
    ranker = Ranker(RankerSettings(hidden=32, heads=4, kind=kind), WIDTH).eval()
    ranker.standardise(torch.randn(100, WIDTH) * 3 + 1)
    return ranker


@pytest.mark.parametrize("kind", KINDS)
def test_scores_follow_their_answers_in_any_order(kind: str) -> None:
    ranker, instruction, answers = _ranker(kind), torch.randn(2, WIDTH), torch.randn(2, 6, WIDTH)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.no_grad():
        found, turned = ranker(instruction, answers), ranker(instruction, answers[:, order])
    torch.testing.assert_close(turned, found[:, order], atol=1e-6, rtol=1e-5)
    assert found.abs().max() <= 1 + 1e-6 and found.std() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("filling", [0.0, 1e4, float("nan")])
@pytest.mark.parametrize("grad", [True, False], ids=["training's path", "inference's path"])
def test_padding_changes_nothing(kind: str, filling: float, grad: bool) -> None:
    ranker, instruction, answers = _ranker(kind), torch.randn(3, WIDTH), torch.randn(3, 4, WIDTH)
    padded = torch.cat([answers, torch.full((3, 3, WIDTH), filling)], dim=1)
    mask = torch.tensor([[True] * 4 + [False] * 3] * 3)
    with torch.set_grad_enabled(grad):
        found, alone = ranker(instruction, padded, mask), ranker(instruction, answers)
    torch.testing.assert_close(found[:, :4], alone, atol=1e-6, rtol=1e-5)
    assert bool((found[:, 4:] == 0).all())


def test_a_listwise_ranker_sees_the_other_answers_and_a_pointwise_one_does_not() -> None:
    instruction, answers, other = torch.randn(1, WIDTH), torch.randn(1, 4, WIDTH), torch.randn(1, 1, WIDTH)
    changed = torch.cat([answers[:, :3], other], dim=1)
    gaps = {kind: (_ranker(kind)(instruction, answers) - _ranker(kind)(instruction, changed))[0, :3] for kind in KINDS}
    assert gaps["listwise"].abs().max() > 1e-4 and gaps["pointwise"].abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_the_count_of_parameters_is_right(kind: str) -> None:
    settings = RankerSettings(hidden=32, heads=4, kind=kind)
    assert settings.parameters(WIDTH) == sum(value.numel() for value in Ranker(settings, WIDTH).parameters())
    # The paper's models: 3,584 values a state, under five million parameters.
    assert RankerSettings(hidden=512).parameters(3584) == 4_987_904


def test_the_loss_is_the_closed_form_for_k_of_m() -> None:
    tau = 0.2
    scores = torch.tensor([[0.9, 0.1, -0.5, 0.3], [0.2, 0.2, 0.2, 7.0]])
    labels = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 1.0, 1.0]])
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    e = [math.exp(value / tau) for value in (0.9, 0.1, -0.5, 0.3)]
    first = -(math.log(e[0] / sum(e)) + math.log(e[3] / sum(e))) / 2 - math.log(2)
    second = math.log(3) - math.log(2)  # equal scores: p̂ = 1/3 against 1/2 for each of two good ones
    found = listwise_kl(scores, labels, mask, tau)
    assert float(found) == pytest.approx((first + second) / 2, abs=1e-6)
    assert float(listwise_kl(scores[1:], labels[1:] * 0 + 1, mask[1:], tau)) == pytest.approx(0, abs=1e-6)


def test_the_loss_is_a_divergence_and_has_gradients() -> None:
    scores = torch.randn(5, 7, requires_grad=True)
    labels, mask = (torch.rand(5, 7) > 0.5).float(), torch.ones(5, 7, dtype=torch.bool)
    labels[:, 0], mask[:, 6] = 1.0, False
    loss = listwise_kl(scores, labels, mask, 0.2)
    loss.backward()
    assert loss.item() >= 0 and scores.grad is not None
    assert bool(scores.grad.isfinite().all()) and bool((scores.grad[:, 6] == 0).all())
    assert pointwise_bce(torch.zeros(2, 2), torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bool), 0.2).item() == (
        pytest.approx(math.log(2))
    )


def test_a_list_without_a_good_answer_has_no_loss() -> None:
    with pytest.raises(ValueError, match="no target"):
        listwise_kl(torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool), 0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_direction_is_found(kind: str) -> None:
    settings = RankerSettings(hidden=32, heads=4, kind=kind)
    fit = FitSettings(draws=2, batch_size=16, epochs=12, learning_rate=1e-3)  # a small one takes longer steps
    fitted = fit_ranker(planted(100, 0), planted(20, 1), settings, fit)
    found = picks(score_with(fitted.ranker), planted(60, 2))
    assert found.accuracy > 0.95 and found.random < 0.6 and found.oracle == 1.0
    assert not fitted.ranker.training and fitted.history[-1]["loss"] < fitted.history[0]["loss"]


def test_without_a_direction_nothing_is_found() -> None:
    """The figures do not come from the labels by another way."""
    fitted = fit_ranker(planted(60, 0, strength=0), planted(20, 1, strength=0), SMALL, QUICK)
    found = picks(score_with(fitted.ranker), planted(120, 2, strength=0))
    assert abs(found.accuracy - found.random) < 0.15


def test_a_seed_makes_a_ranker_and_leaves_the_world_alone() -> None:
    lists, held_out = planted(12, 0), planted(6, 1)
    before = torch.get_rng_state()
    one, same, other = (fit_ranker(lists, held_out, SMALL, QUICK, seed) for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert one.history == same.history
    pairs = zip(one.ranker.state_dict().values(), same.ranker.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert one.history != other.history


def test_training_stops_when_picks_get_no_better() -> None:
    rows: list[Any] = []
    fit = FitSettings(draws=1, batch_size=16, epochs=50, patience=2)
    held_out = planted(10, 1, strength=0)
    fitted = fit_ranker(planted(40, 0), held_out, SMALL, fit, log=rows.append)
    assert len(rows) == len(fitted.history) < 50
    top = max((row["stopping/accuracy"], -row["stopping/loss"]) for row in rows)
    kept = rows[fitted.epoch - 1]
    assert (kept["stopping/accuracy"], -kept["stopping/loss"]) == top
    assert picks(score_with(fitted.ranker), held_out).accuracy == kept["stopping/accuracy"]


def test_lists_without_both_kinds_teach_nothing() -> None:
    some = planted(8, 0)
    all_good = [type(one)(one.instruction, one.answers, torch.ones_like(one.good)) for one in planted(8, 5)]
    fitted = fit_ranker([*some, *all_good], some, SMALL, QUICK)
    assert fitted.history == fit_ranker(some, some, SMALL, QUICK).history
    with pytest.raises(DataError, match="both a good answer and another"):
        fit_ranker(all_good, some, SMALL, QUICK)


def test_drawn_lists_are_mixed_and_short() -> None:
    rng, (one,) = random.Random(0), planted(1, 0, m=16)
    for length in (2, 5, 8, 40):
        found = [drawn(one, length, rng) for _ in range(20)]
        assert all(part.is_mixed and len(part.good) == min(length, 16) for part in found)
        for part in found:
            rows = [[torch.equal(a, b) for b in one.answers].index(True) for a in part.answers]
            assert len(set(rows)) == len(rows) and torch.equal(part.good, one.good[rows])


def test_too_large_a_ranker_is_refused() -> None:
    with pytest.raises(DataError, match="smaller ranker.hidden"):
        fit_ranker(planted(4, 0), planted(4, 1), RankerSettings(hidden=1024), QUICK)


@pytest.mark.parametrize(
    "wrong", [{"kind": "x"}, {"pool": "row"}, {"hidden": 30}, {"layer": 0.0}, {"layer": 1.5}, {"tau": 0.0}], ids=str
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="ranker"):
        RankerSettings(**wrong)


def test_the_batch_loss_ignores_how_lists_are_padded() -> None:
    ranker, lists = _ranker(), [*planted(2, 0, m=3), *planted(2, 1, m=7)]
    together = ranker_loss(ranker, collate(lists))
    alone = torch.stack([ranker_loss(ranker, collate([one])) for one in lists]).mean()
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)
