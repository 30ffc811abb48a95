"""The safety token's embedding and the safety head that reads its state.

Source: Li & Kim, ICML 2025 (arXiv 2505.17072): one learned token and a linear binary classifier,
`p(malicious) = sigmoid(w·h + b)`. Reading several depths and pooled states is this project's extension.
"""

from __future__ import annotations

from collections.abc import Callable
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
    their states are concatenated. `separate_windows`: windows over an answer are read by weights of their own, since
    requests and answers look different at the depths that tell most; False is the paper's single read-out.
    `token_layers`: depths at which the token head reads each generated token's own state; () is for none.
    `window_pool`: what of `pool` the windows' own read-out reads; () is all of it.
    """

    layers: tuple[float, ...] = (1.0,)
    pool: tuple[str, ...] = ("row",)
    separate_windows: bool = False
    token_layers: tuple[float, ...] = ()
    window_pool: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.layers or any(not 0.0 < f <= 1.0 for f in self.layers):
            raise ValueError(f"head.layers must be fractions of depth in (0, 1], got {list(self.layers)}")
        if any(not 0.0 < f <= 1.0 for f in self.token_layers):
            raise ValueError(f"head.token_layers must be fractions of depth in (0, 1], got {list(self.token_layers)}")
        unknown = [name for name in self.pool if name not in POOLS]
        if unknown or not self.pool:
            raise ValueError(f"head.pool must be a non-empty subset of {POOLS}, got {list(self.pool)}")
        if set(self.window_pool) - set(self.pool) or (self.window_pool and not self.separate_windows):
            wanted = "head.window_pool must be part of head.pool, and needs head.separate_windows"
            raise ValueError(f"{wanted}: got {list(self.window_pool)}; null reads all of it")

    def blocks(self, n_layers: int) -> tuple[int, ...]:
        """Depths as block counts 1..L (L stands for the output after the final norm), sorted, without repeats."""
        return _blocks(self.layers, n_layers)

    def token_blocks(self, n_layers: int) -> tuple[int, ...]:
        """Depths of the token head, likewise."""
        return _blocks(self.token_layers, n_layers)

    def width(self, n_layers: int, hidden_size: int) -> int:
        """Number of inputs of the linear head."""
        return len(self.blocks(n_layers)) * len(self.pool) * hidden_size

    def window_reads(self, n_layers: int, hidden_size: int) -> torch.Tensor:
        """Which inputs of the head the windows' read-out reads, bool `[width]`."""
        block = len(self.blocks(n_layers)) * hidden_size
        wanted = self.window_pool or self.pool
        return torch.tensor([name in wanted for name in self.pool]).repeat_interleave(block)

    @property
    def n_readouts(self) -> int:
        """Linear read-outs: one for all rows, or one for requests (and their refreshes) and one for windows."""
        return 2 if self.separate_windows else 1


def _blocks(fractions: tuple[float, ...], n_layers: int) -> tuple[int, ...]:
    return tuple(sorted({min(n_layers, max(1, round(f * n_layers))) for f in fractions}))


class SafetyToken(nn.Module):
    """The safety token's own embedding vector `[H]`, not a row of any vocabulary; kept in fp32."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size, dtype=torch.float32))

    def forward(self, batch_size: int, n_safety: int) -> torch.Tensor:
        """Returns `[B, S, H]` copies of the embedding."""
        return self.weight.expand(batch_size, n_safety, -1)


class SafetyHead(nn.Module):
    """Standardise, then a linear logit, always computed in fp32; one set of weights for each of R read-outs.

    `mean` and `scale` `[R, width]` are fixed once from the frozen model's features and saved with the head.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    reads: torch.Tensor  # bool [R, width]: the inputs of each read-out; given by the settings, not saved

    def __init__(self, width: int, n_readouts: int = 1) -> None:
        super().__init__()
        self.linear = nn.Linear(width, n_readouts, dtype=torch.float32)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("mean", torch.zeros(n_readouts, width, dtype=torch.float32))
        self.register_buffer("scale", torch.ones(n_readouts, width, dtype=torch.float32))
        self.register_buffer("reads", torch.ones(n_readouts, width, dtype=torch.bool), persistent=False)

    def forward(self, features: torch.Tensor, readouts: torch.Tensor | None = None) -> torch.Tensor:
        """Features `[..., width]` to logits `[...]` in fp32, whatever autocast says.

        `readouts`: which read-out judges each row, integers `[...]`; None takes the first for all.
        """
        with torch.autocast(features.device.type, enabled=False):
            rows = features.float()
            logits = torch.stack([self._logit(rows, index) for index in range(len(self.mean))], dim=-1)
        if readouts is None:
            return logits[..., 0]
        return logits.gather(-1, readouts.unsqueeze(-1)).squeeze(-1)

    def _logit(self, rows: torch.Tensor, index: int) -> torch.Tensor:
        standard = (rows - self.mean[index].float()) / self.scale[index].float()
        weight, bias = self.linear.weight[index].float() * self.reads[index], self.linear.bias[index].float()
        return nn.functional.linear(standard, weight[None], bias[None]).squeeze(-1)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> SafetyHead:
        """Moves as asked, but a cast of the whole model (DeepSpeed's in bf16) does not round mean and scale."""
        exact = {"mean": self.mean, "scale": self.scale}
        super()._apply(fn, recurse)
        for name, value in exact.items():
            if getattr(self, name).dtype != torch.float32:
                setattr(self, name, value.float().to(getattr(self, name).device))
        return self

    @torch.no_grad()
    def standardise_on(self, features: torch.Tensor, readout: int = 0) -> None:
        """Fixes mean and scale of a read-out from frozen features `[N, width]`; constant inputs keep scale 1."""
        self.mean[readout].copy_(features.float().mean(dim=0))
        deviation = features.float().std(dim=0, unbiased=False)
        self.scale[readout].copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))

    @torch.no_grad()
    def set_linear(self, weight: torch.Tensor, bias: float, readout: int = 0) -> None:
        """Loads a linear solution found on standardised features (the warm start)."""
        self.linear.weight[readout].copy_(weight.reshape(-1))
        self.linear.bias[readout].fill_(float(bias))
