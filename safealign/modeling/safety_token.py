"""The safety token's embedding and the safety head that reads its state.

Source: Li & Kim, ICML 2025 (arXiv 2505.17072): one learned token and a linear binary classifier,
`p(malicious) = sigmoid(w·h + b)`. Reading several depths and pooled states is this project's extension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

POOLS = ("row", "mean", "last")


@dataclass(frozen=True)
class HeadSettings:
    """Where the head reads.

    `layers`: fractions of depth in (0, 1]; f is the output of block round(f·L), f = 1 after the final norm.
    `pool`: any of `row` (the safety row's own state), `mean` (mean over the row's span), `last` (the last
    row of the span: for the request its last content token, so that windows never lean on the request's verdict);
    their states are concatenated.
    """

    layers: tuple[float, ...] = (1.0,)
    pool: tuple[str, ...] = ("row",)

    def __post_init__(self) -> None:
        if not self.layers or any(not 0.0 < f <= 1.0 for f in self.layers):
            raise ValueError(f"head.layers must be fractions of depth in (0, 1], got {list(self.layers)}")
        unknown = [name for name in self.pool if name not in POOLS]
        if unknown or not self.pool:
            raise ValueError(f"head.pool must be a non-empty subset of {POOLS}, got {list(self.pool)}")

    def blocks(self, n_layers: int) -> tuple[int, ...]:
        """Depths as block counts 1..L (L stands for the output after the final norm), sorted, without repeats."""
        return tuple(sorted({min(n_layers, max(1, round(f * n_layers))) for f in self.layers}))

    def width(self, n_layers: int, hidden_size: int) -> int:
        """Number of inputs of the linear head."""
        return len(self.blocks(n_layers)) * len(self.pool) * hidden_size


class SafetyToken(nn.Module):
    """The safety token's own embedding vector `[H]`, not a row of any vocabulary; kept in fp32."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size, dtype=torch.float32))

    def forward(self, batch_size: int, n_safety: int) -> torch.Tensor:
        """Returns `[B, S, H]` copies of the embedding."""
        return self.weight.expand(batch_size, n_safety, -1)


class SafetyHead(nn.Module):
    """Standardise, then one linear logit, always computed in fp32.

    `mean` and `scale` are fixed once from the frozen model's features and saved with the head.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1, dtype=torch.float32)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float32))
        self.register_buffer("scale", torch.ones(width, dtype=torch.float32))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features `[..., width]` to logits `[...]` in fp32, whatever autocast says."""
        with torch.autocast(features.device.type, enabled=False):
            standard = (features.float() - self.mean.float()) / self.scale.float()
            weight, bias = self.linear.weight.float(), self.linear.bias.float()
            return nn.functional.linear(standard, weight, bias).squeeze(-1)

    @torch.no_grad()
    def standardise_on(self, features: torch.Tensor) -> None:
        """Fixes mean and scale from frozen features `[N, width]`; constant inputs keep scale 1."""
        self.mean.copy_(features.float().mean(dim=0))
        deviation = features.float().std(dim=0, unbiased=False)
        self.scale.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))

    @torch.no_grad()
    def set_linear(self, weight: torch.Tensor, bias: float) -> None:
        """Loads a linear solution found on standardised features (the warm start)."""
        self.linear.weight.copy_(weight.reshape(1, -1))
        self.linear.bias.fill_(float(bias))
