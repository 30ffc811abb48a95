"""Binomial limits against printed tables, scipy, and their own definition."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safealign.evaluation.metrics.binomial import (
    binomial_cdf,
    clopper_pearson,
    lower_limit,
    regularised_beta,
    units_needed,
    upper_limit,
    wilson,
)


@given(n=st.integers(1, 60), p=st.floats(0.001, 0.999), data=st.data())
@settings(max_examples=80, deadline=None)
def test_cdf_equals_the_sum_of_its_terms(n: int, p: float, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    by_hand = sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))
    assert binomial_cdf(k, n, p) == pytest.approx(by_hand, abs=1e-10)


def test_cdf_at_the_ends() -> None:
    assert binomial_cdf(-1, 5, 0.3) == 0.0
    assert binomial_cdf(5, 5, 0.3) == 1.0
    assert regularised_beta(2, 3, 0.0) == 0.0 and regularised_beta(2, 3, 1.0) == 1.0


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(0, 10, 0.0, 0.3085), (1, 10, 0.0025, 0.4450), (5, 10, 0.1871, 0.8129), (10, 10, 0.6915, 1.0)],
)
def test_clopper_pearson_table(k: int, n: int, low: float, high: float) -> None:
    assert clopper_pearson(k, n) == pytest.approx((low, high), abs=5e-5)


def test_limits_agree_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for k, n in [(0, 80), (3, 80), (79, 80), (17, 159), (400, 1000), (2, 5000)]:
        for method, mine in (("exact", clopper_pearson), ("wilson", wilson)):
            theirs = stats.binomtest(k, n).proportion_ci(0.95, method=method)
            assert mine(k, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_sample_sizes_of_the_specification() -> None:
    assert units_needed(0.01, 0.95) == 299
    assert units_needed(0.005, 0.975) == 736
    assert units_needed(0.01, 0.95, errors=1) == 473  # the classic table of attribute sampling


@given(rate=st.floats(0.002, 0.4), confidence=st.floats(0.6, 0.999), errors=st.integers(0, 6))
@settings(max_examples=60, deadline=None)
def test_units_needed_is_the_smallest_that_works(rate: float, confidence: float, errors: int) -> None:
    n = units_needed(rate, confidence, errors)
    assert binomial_cdf(errors, n, rate) <= 1 - confidence < binomial_cdf(errors, n - 1, rate)


def test_one_sided_limits_mirror_each_other() -> None:
    assert upper_limit(0, 299) == pytest.approx(1 - 0.05 ** (1 / 299), rel=1e-9)
    assert lower_limit(77, 80) == pytest.approx(1 - upper_limit(3, 80))
    assert clopper_pearson(0, 0) == wilson(0, 0) == (0.0, 1.0)
