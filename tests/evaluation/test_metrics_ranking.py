"""Ranking metrics against counting by hand, scikit-learn, and each other."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safealign.evaluation.metrics.ranking import (
    auroc,
    by_category,
    delong,
    fire_rate,
    ranking,
    recall_at_fpr,
)

grid = st.lists(st.integers(0, 6), min_size=1, max_size=15)


@given(positive=grid, negative=grid)
@settings(max_examples=100, deadline=None)
def test_auroc_counts_pairs_with_ties_half(positive: list[int], negative: list[int]) -> None:
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    found = auroc(positive + negative, [1] * len(positive) + [0] * len(negative))
    assert found.value == pytest.approx(sum(pairs) / len(pairs))
    assert 0 <= found.interval[0] <= found.value <= found.interval[1] <= 1


def test_delong_variance_by_its_definition() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(1, 1, 40), rng.normal(0, 1, 70)
    wins = (positive[:, None] > negative[None, :]).astype(float)
    by_hand = wins.mean(1).var(ddof=1) / 40 + wins.mean(0).var(ddof=1) / 70
    assert delong(positive, negative)[1] == pytest.approx(by_hand)


def test_auroc_agrees_with_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(2)
    y = rng.integers(0, 2, 300)
    x = np.round(rng.normal(y, 1.0), 1)
    assert auroc(torch.tensor(x), torch.tensor(y)).value == pytest.approx(metrics.roc_auc_score(y, x))


def test_perfect_ranking_still_has_a_width() -> None:
    found = auroc([1, 2, 3, 4], [0, 0, 1, 1])
    assert found.value == 1.0 and found.interval[1] == 1.0 and found.interval[0] < 0.9
    many = auroc(np.arange(400.0), np.arange(400) >= 200)
    assert 0.97 < many.interval[0] < 1.0


def test_interval_covers_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    truth = 0.9213503964748575  # Phi(2 / sqrt 2)
    hits = 0
    for _ in range(400):
        x = np.concatenate([rng.normal(2, 1, 60), rng.normal(0, 1, 80)])
        low, high = auroc(x, [1] * 60 + [0] * 80).interval
        hits += low <= truth <= high
    assert 0.92 <= hits / 400 <= 0.985


def test_recall_at_fpr_never_exceeds_its_rate() -> None:
    scores = [5.0, 4.0, 3.0, 1.0] + [4.5] + [0.0] * 99
    labels = [1] * 4 + [0] * 100
    strict, loose = recall_at_fpr(scores, labels, 0.005), recall_at_fpr(scores, labels, 0.01)
    assert strict.rate.successes == 1 and strict.false_positives.successes == 0
    assert loose.rate.successes == 4 and loose.false_positives.value <= 0.01
    assert fire_rate(scores[:4], strict.threshold).successes == 1


def test_ties_at_the_threshold_do_not_fire() -> None:
    found = recall_at_fpr([1.0, 1.0, 1.0, 1.0], [1, 1, 0, 0], 0.5)
    assert found.rate.successes == 0 and found.false_positives.successes == 0
    assert recall_at_fpr([1.0, 2.0], [1, 0], 1.0).rate.value == 1.0


def test_categories_share_the_thresholds_of_all_benign_rows() -> None:
    scores = [3.0, 2.0, 0.5, 0.4, 0.1, 0.2]
    labels = [1, 1, 1, 0, 0, 0]
    rows = by_category(scores, labels, ["a", "a", "b", "everyday", None, "everyday"], fprs=(0.01,))
    assert [(row.category, row.label, row.n) for row in rows] == [
        ("a", 1, 2),
        ("b", 1, 1),
        ("everyday", 0, 2),
        ("other", 0, 1),
    ]
    assert rows[0].fires[0.01].value == 1.0 and rows[2].fires[0.01].value == 0.0
    json.dumps([row.to_dict() for row in rows])


def test_ranking_is_json_and_flat() -> None:
    found = ranking([3.0, 2.0, 0.5, 0.4], [1, 0, 1, 0])
    assert set(found.flat("request/")) == {"request/auroc", "request/recall@0.01", "request/recall@0.05"}
    assert json.loads(json.dumps(found.to_dict()))["auroc"]["n"] == 4


@pytest.mark.parametrize(
    ("scores", "labels", "says"),
    [
        ([1.0], [1, 0], "equally long"),
        ([1.0, 2.0], [1, 1], "both classes"),
        ([float("nan"), 1.0], [1, 0], "nan"),
    ],
)
def test_bad_input_is_named(scores: list[float], labels: list[int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        auroc(scores, labels)
