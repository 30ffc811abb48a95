"""Binary cross-entropy of the safety verdicts.

Source: Li & Kim, ICML 2025 (arXiv 2505.17072): L = L_sft + λ·L_cls with
L_cls = -1/N Σ_n [y_n log σ(z_n) + (1 - y_n) log(1 - σ(z_n))] over all labelled safety rows.
"""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits


def safety_bce(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    n_rows: int | torch.Tensor | None = None,
    pos_weight: float | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Mean binary cross-entropy in fp32 over rows whose label is not negative.

    `logits`, `labels`: same shape; labels in [0, 1], anything negative is ignored. `n_rows`: the global number of
    labelled rows to divide by, across micro-batches and ranks (where gradients are averaged over ranks, their mean,
    which may be below 1); by default the number here. `label_smoothing` ε moves labels to y(1-ε) + ε/2. A batch
    without labelled rows gives a differentiable zero.
    """
    chosen = labels >= 0
    targets = labels[chosen].float() * (1.0 - label_smoothing) + 0.5 * label_smoothing
    weight = None if pos_weight is None else torch.tensor(pos_weight, device=logits.device)
    total = binary_cross_entropy_with_logits(
        logits[chosen].float(), targets, pos_weight=weight, reduction="sum"
    )
    count = chosen.sum() if n_rows is None else torch.as_tensor(n_rows, device=logits.device)
    return (total + 0.0 * logits.float().sum()) / torch.where(count > 0, count, 1)
