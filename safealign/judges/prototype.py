"""Latent prototypes: class means under one shared covariance, without any training by gradient.

Source: Chrabąszcz et al., "Efficient LLM Moderation with Multi-Layer Latent Prototypes" (arXiv 2502.16174), for one set
of states; their estimate of the precision, checked against their code.
"""

from __future__ import annotations

import torch

from safealign.errors import DataError
from safealign.judges.linear import check_rows


class LatentPrototypes:
    """Gaussian discriminant analysis of two classes with even priors: a linear logit w · x + b.

    With class means μ_c and the covariance S of N rows of D numbers about their own means, the precision is
    Σ⁻¹ = D ((N − 1) S + tr(S) I)⁻¹, w = Σ⁻¹ (μ₁ − μ₀) and b = −w · (μ₁ + μ₀) / 2. The paper's Mahalanobis variant,
    softmax(−(x − μ_c)ᵀ Σ⁻¹ (x − μ_c)), has twice this logit, and so the same ranking and the same decisions.

    Attributes:
        weight: w, fp64 [D].
        bias: b, fp64 scalar.
    """

    def __init__(self) -> None:
        self.weight = torch.empty(0, dtype=torch.float64)
        self.bias = torch.zeros((), dtype=torch.float64)

    def fit(self, X: torch.Tensor, y: torch.Tensor) -> LatentPrototypes:
        """Fit on X [N, D] and y [N] (0 or 1), each row counting once.

        Returns:
            itself.

        Raises:
            DataError: shapes that do not match, inputs that are not finite, only one class, or rows of a class that
                are all the same.
        """
        rows, labels = X.detach().double().cpu(), torch.as_tensor(y).detach().double().cpu()
        check_rows("LatentPrototypes", rows, labels, torch.ones_like(labels))
        means = torch.stack([rows[labels == label].mean(0) for label in (0.0, 1.0)])
        centred = rows - means[labels.long()]
        trace = float(centred.square().sum()) / max(1, len(rows) - 1)
        if trace == 0.0:
            raise DataError("LatentPrototypes: the rows of each class are all the same; add other texts")
        self.weight = rows.shape[1] * _solved(centred, trace, means[1] - means[0])
        self.bias = -0.5 * self.weight @ (means[0] + means[1])
        return self

    def decision(self, X: torch.Tensor) -> torch.Tensor:
        """Logits of X [N, D], fp64 [N] on the CPU.

        Raises:
            DataError: not fitted, or rows of another width.
        """
        rows = X.detach().double().cpu()
        if not self.weight.numel() or rows.ndim != 2 or rows.shape[1] != self.weight.numel():
            raise DataError(
                f"LatentPrototypes: fitted on {self.weight.numel()} columns, got {tuple(rows.shape)}"
            )
        return rows @ self.weight + self.bias


def _solved(centred: torch.Tensor, ridge: float, right: torch.Tensor) -> torch.Tensor:
    """(CᵀC + ridge · I)⁻¹ right, through the smaller of the two Gram matrices; C is [N, D]."""
    n, width = centred.shape
    if width <= n:
        gram = centred.T @ centred
        return _cholesky(gram, ridge, right)
    return (right - centred.T @ _cholesky(centred @ centred.T, ridge, centred @ right)) / ridge


def _cholesky(gram: torch.Tensor, ridge: float, right: torch.Tensor) -> torch.Tensor:
    gram.diagonal().add_(ridge)
    factor = torch.linalg.cholesky(gram)
    return torch.cholesky_solve(right[:, None], factor)[:, 0]
