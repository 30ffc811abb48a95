"""Latent prototypes: the closed forms, either way round, and no worse than the best possible on two Gaussians."""

from __future__ import annotations

import math

import pytest
import torch

from safealign.errors import DataError
from safealign.judges.prototype import LatentPrototypes


def two_gaussians(n: int, width: int, apart: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows `[2n, width]` of two classes under one random covariance, their labels, and half the means' difference."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
    mixing += torch.eye(width, dtype=torch.float64)
    half = 0.5 * apart * mixing[:, 0]
    labels = torch.arange(2 * n) % 2
    noise = torch.randn(2 * n, width, generator=generator, dtype=torch.float64) @ mixing.T
    return noise + (2.0 * labels[:, None] - 1.0) * half + 3.0, labels, half


def by_definition(rows: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Class means and the paper's precision, term by term."""
    n, width = rows.shape
    means = torch.stack([rows[labels == label].mean(0) for label in (0, 1)])
    centred = rows - means[labels]
    covariance = centred.T @ centred / (n - 1)
    ridge = covariance.trace() * torch.eye(width, dtype=torch.float64)
    return means[0], means[1], width * torch.linalg.inv((n - 1) * covariance + ridge)


@pytest.mark.parametrize(("n", "width"), [(40, 5), (6, 30)], ids=["more rows", "more columns"])
def test_the_logit_is_the_difference_of_the_papers_class_scores(n: int, width: int) -> None:
    rows, labels, _ = two_gaussians(n, width, 1.0)
    good, bad, precision = by_definition(rows, labels)
    scores = [rows @ precision @ mean - 0.5 * mean @ precision @ mean for mean in (good, bad)]
    found = LatentPrototypes().fit(rows, labels).decision(rows)
    torch.testing.assert_close(found, scores[1] - scores[0], rtol=1e-8, atol=1e-8)


def test_the_mahalanobis_variant_has_twice_the_logit() -> None:
    rows, labels, _ = two_gaussians(40, 5, 1.0)
    good, bad, precision = by_definition(rows, labels)
    distances = [torch.einsum("nd,de,ne->n", rows - mean, precision, rows - mean) for mean in (good, bad)]
    found = LatentPrototypes().fit(rows, labels).decision(rows)
    torch.testing.assert_close(distances[0] - distances[1], 2.0 * found, rtol=1e-8, atol=1e-8)


def test_with_many_rows_it_is_linear_discriminant_analysis() -> None:
    """The ridge is one covariance's trace against N − 1 covariances."""
    rows, labels, _ = two_gaussians(20_000, 4, 1.0)
    good, bad, _ = by_definition(rows, labels)
    centred = rows - torch.stack([good, bad])[labels]
    wanted = torch.linalg.solve(centred.T @ centred, bad - good)
    found = LatentPrototypes().fit(rows, labels).weight
    assert float(torch.cosine_similarity(found, wanted, dim=0)) > 0.9999


def test_it_comes_near_the_best_possible_on_two_gaussians() -> None:
    apart = 2.0
    rows, labels, _ = two_gaussians(4000, 12, apart)
    found = LatentPrototypes().fit(rows[:4000], labels[:4000])
    right = float(((found.decision(rows[4000:]) > 0) == (labels[4000:] == 1)).double().mean())
    best = 0.5 * (1.0 + math.erf(0.5 * apart / 2**0.5))
    assert abs(right - best) < 0.02


def test_what_cannot_be_fitted_is_refused() -> None:
    rows, labels, _ = two_gaussians(4, 3, 1.0)
    with pytest.raises(DataError, match="both classes"):
        LatentPrototypes().fit(rows, torch.zeros(8))
    with pytest.raises(DataError, match="all the same"):
        LatentPrototypes().fit(labels[:, None].double().expand(-1, 3), labels)
    with pytest.raises(DataError, match="not finite"):
        LatentPrototypes().fit(rows.index_fill(0, torch.tensor([2]), float("nan")), labels)
    with pytest.raises(DataError, match="fitted on 0 columns"):
        LatentPrototypes().decision(rows)
