"""Calibration keeps its promise, and says so when the data cannot carry it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safealign.errors import DataError
from safealign.evaluation.metrics.calibration import (
    calibrate,
    candidate_windows,
    errors_allowed,
    max_min_statistic,
    threshold,
)


def test_sample_sizes_of_the_specification() -> None:
    assert errors_allowed(298, 0.01, 0.95) == -1 and errors_allowed(299, 0.01, 0.95) == 0
    assert errors_allowed(472, 0.01, 0.95) == 0 and errors_allowed(473, 0.01, 0.95) == 1


def test_threshold_lies_just_above_its_order_statistic() -> None:
    values = np.arange(473, dtype=np.float32)
    found = threshold(values, 0.01, 0.95)
    assert found.errors_allowed == 1 and found.carries_promise
    assert found.logit > 471.0 and (values >= np.float32(found.logit)).sum() == 1
    assert found.promised_rate <= 0.01


def test_too_few_units_say_what_they_can_promise() -> None:
    found = threshold(np.zeros(100), 0.01, 0.95, distribution="everyday requests")
    assert not found.carries_promise and found.units_needed == 299
    assert found.promised_rate == pytest.approx(1 - 0.05 ** (1 / 100))
    assert "299" in found.note and "not promised" in found.note and "everyday requests" in found.note


def test_errors_can_be_chosen() -> None:
    found = threshold(np.arange(100.0), 0.05, 0.95, errors=5)
    assert found.errors_allowed == 5 and not found.carries_promise and found.promised_rate > 0.05


@pytest.mark.parametrize("n", [120, 299, 473])
def test_promise_holds_over_the_draw_of_the_units(n: int) -> None:
    """Monte Carlo: the true rate exceeds the promised one in at most 1 - confidence of the draws."""
    rng = np.random.default_rng(n)
    broken = 0
    for _ in range(400):
        found = threshold(rng.uniform(size=n), 0.01, 0.9)
        broken += 1.0 - found.logit > found.promised_rate + 1e-6
    assert broken / 400 <= 0.1 + 0.045  # three standard errors


def test_promise_holds_with_ties() -> None:
    rng = np.random.default_rng(5)
    values = rng.integers(0, 3, size=500).astype(float)
    found = threshold(values, 0.05, 0.95)
    assert (values >= found.logit).mean() <= found.promised_rate


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=60))
@settings(max_examples=80, deadline=None)
def test_no_more_units_fire_than_allowed(values: list[float]) -> None:
    found = threshold(values, 0.1, 0.9)
    assert sum(np.float32(v) >= np.float32(found.logit) for v in values) <= found.errors_allowed
    json.dumps(found.to_dict(), allow_nan=False)


def test_budget_is_split_and_adds_up() -> None:
    units = np.random.default_rng(0).normal(size=736)
    both = calibrate({"query": units, "window": -units}, 0.01, 0.95)
    assert both.carries_promise and both.promised_rate <= 0.01
    assert all(part.confidence == pytest.approx(0.975) for part in both.thresholds.values())
    fewer = calibrate({"query": units[:735], "window": units}, 0.01, 0.95)
    assert not fewer.carries_promise and "736" in fewer.note
    json.dumps(fewer.to_dict(), allow_nan=False)


def test_weights_move_the_budget() -> None:
    units = np.random.default_rng(0).normal(size=400)
    found = calibrate({"query": units, "window": units}, 0.04, 0.9, weights={"query": 3, "window": 1})
    assert found.thresholds["query"].budget == pytest.approx(0.03)
    assert found.thresholds["query"].logit <= found.thresholds["window"].logit


def test_union_bound_covers_both_statistics_together() -> None:
    """Fresh units break one threshold or the other at most as often as the joint promise says."""
    rng = np.random.default_rng(9)
    broken = 0
    for _ in range(200):
        found = calibrate({"query": rng.uniform(size=150), "window": rng.uniform(size=150)}, 0.05, 0.9)
        rate = sum(1.0 - part.logit for part in found.thresholds.values())
        broken += rate > found.promised_rate
    assert broken / 200 <= 0.1 + 0.06


@pytest.mark.parametrize(
    ("values", "says"),
    [([], "one number per benign unit"), ([0.0, math.nan], "unit 1"), ([-math.inf] * 5, "longer answers")],
)
def test_bad_units_are_named(values: list[float], says: str) -> None:
    with pytest.raises(DataError, match=says):
        threshold(values)
    with pytest.raises(DataError, match="nothing|no statistic"):
        calibrate({})
    with pytest.raises(DataError, match="3 errors"):
        threshold([1.0, 2.0], errors=3)
    with pytest.raises(ValueError, match="budget"):
        threshold([1.0], budget=0.0)


def test_candidate_windows_follow_rules_two_and_three() -> None:
    plan = candidate_windows([10, 20, 99], length=21, tau=3)
    assert plan[10] == [(1, 10), (1, 11), (1, 12)]
    assert plan[20] == [(11, 20), (11, 21)]
    assert plan[21] == [(12, 21)]
    assert candidate_windows([1], 1, prefix=4)[1] == [(-3, 1)]
    assert candidate_windows([1, 2], 0) == {}


def test_max_min_statistic() -> None:
    logits = {10: [5.0, -1.0, 4.0], 20: [2.0, 1.0, 3.0, -9.0], 30: [0.5]}
    assert max_min_statistic(logits, tau=3, length=30) == 1.0
    assert max_min_statistic(logits, tau=1) == 5.0
    assert max_min_statistic({}, tau=3) == -math.inf
    with pytest.raises(ValueError, match="step 10"):
        max_min_statistic({10: [1.0]}, tau=3, length=20)


def test_an_intervention_implies_the_statistic_reaches_the_threshold() -> None:
    """Play the pending rule on random logits: whenever it intervenes, the statistic is at or above θ."""
    rng = np.random.default_rng(4)
    for _ in range(200):
        length, tau, theta = int(rng.integers(1, 30)), int(rng.integers(1, 4)), 0.3
        plan = candidate_windows(range(1, length + 1, 3), length, tau=tau)
        logits = {s: rng.normal(size=len(spans)).tolist() for s, spans in plan.items()}
        intervened = any(all(z >= theta for z in zs) for zs in logits.values())
        assert not intervened or max_min_statistic(logits, tau, length) >= theta
