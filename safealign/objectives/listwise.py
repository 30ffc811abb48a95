"""Losses of a ranker over lists of answers, some of which are good.

Source: Du et al., *Safety Representation Ranking* (arXiv 2505.15710): with k good answers of m, p*_i = 1/k for a good
one and 0 else, p̂ = softmax(s/τ), L = KL(p* ‖ p̂) = -1/k Σ_{good i} log p̂_i - log k.
"""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits


def listwise_kl(scores: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor, tau: float) -> torch.Tensor:
    """Mean KL divergence over lists, in fp32, in nats; 0 where the good answers share all of the mass alike.

    `scores` `[B, m]`; `labels` `[B, m]`, 1 for a good answer; `mask` `[B, m]`, True where there is an answer. Raises
    ValueError for a list without a good answer, which has no target.
    """
    good = (labels > 0) & mask
    k = good.sum(dim=-1, keepdim=True)
    if not bool((k > 0).all()):
        raise ValueError("a list without any good answer has no target: leave it out")
    log_p = (scores.float() / tau).masked_fill(~mask, -torch.inf).log_softmax(dim=-1)
    # Selected, not multiplied: 0 · -inf would be no number.
    gained = log_p.masked_fill(~good, 0.0) / k
    return (-gained.sum(dim=-1) - k.squeeze(-1).float().log()).mean()


def pointwise_bce(scores: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor, tau: float) -> torch.Tensor:
    """Mean binary cross-entropy of s/τ, every answer by itself; arguments as in `listwise_kl`."""
    logits, targets = scores.float()[mask] / tau, (labels > 0).float()[mask]
    return binary_cross_entropy_with_logits(logits, targets)
