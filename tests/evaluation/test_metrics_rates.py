"""Rates carry counts and intervals; differences respect the pairing."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from safealign.evaluation.metrics.rates import Estimate, Rate, difference, mean


def test_rate_reports_value_count_and_interval() -> None:
    rate = Rate.of([True, False, False, False])
    assert (rate.value, rate.k, rate.n) == (0.25, 1, 4)
    plain = json.loads(json.dumps(rate.to_dict()))
    assert plain["value"] == 0.25 and plain["n"] == 4 and len(plain["interval"]) == 2
    low, high = rate.interval
    assert 0 < low < 0.25 < high < 1
    assert rate.exact_interval[0] < low and rate.exact_interval[1] > high


def test_wilson_at_zero_of_eighty() -> None:
    assert Rate(0, 80).interval == pytest.approx((0.0, 0.0458), abs=1e-4)
    assert Rate(0, 80).exact_interval == pytest.approx((0.0, 0.0451), abs=1e-4)


def test_empty_rate_is_json_and_uninformative() -> None:
    rate = Rate(0, 0)
    assert math.isnan(rate.value) and rate.interval == (0.0, 1.0)
    assert json.loads(json.dumps(rate.to_dict(), allow_nan=False))["value"] is None
    assert str(rate) == "– (0/0)"


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="5 of 4"):
        Rate(5, 4)


@pytest.mark.parametrize("p", [0.02, 0.2, 0.5])
def test_exact_interval_covers(p: float) -> None:
    """Over all outcomes of Binomial(60, p) the exact interval covers p at least as often as promised."""
    n = 60
    covered = 0.0
    for k in range(n + 1):
        low, high = Rate(k, n).exact_interval
        if low <= p <= high:
            covered += math.comb(n, k) * p**k * (1 - p) ** (n - k)
    assert covered >= 0.95


def test_mean_and_its_interval() -> None:
    found = mean([1.0, 2.0, 3.0])
    assert found.value == 2.0 and found.n == 3
    assert found.interval == pytest.approx((2 - 1.96 / math.sqrt(3), 2 + 1.96 / math.sqrt(3)), abs=1e-3)
    assert mean([5.0]).to_dict()["interval"] == [None, None]
    assert isinstance(mean([]), Estimate) and mean([]).to_dict()["value"] is None


def test_difference_uses_the_pairing() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(size=200) * 10  # large variation between rows, tiny and constant gap within
    found = difference(base.tolist(), (base + 0.1).tolist())
    assert found.value == pytest.approx(0.1)
    assert found.interval == pytest.approx((0.1, 0.1))
    flags = difference([True] * 50, [False] * 25 + [True] * 25)
    assert flags.value == -0.5 and flags.interval[1] < 0


def test_difference_refuses_unpaired_rows() -> None:
    with pytest.raises(ValueError, match="2 and 1"):
        difference([0, 1], [1])
