"""The ranker: one encoder block over the states of an instruction and of its candidate answers.

Source: Du et al. (arXiv 2505.15710): z_0 = W h_inst + b, z_i = W h_i + b; O = EncoderBlock([z_0, …, z_m]) without
positions; s_i = cos(o_0, o_i). Standardising the states first is this project's: it changes what W starts from, and
nothing that W could not undo.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import normalize

from safealign.ranking.settings import LISTWISE, RankerSettings


class Ranker(nn.Module):
    """Scores m answers to an instruction from states of `width` values; in fp32 whatever the states come in."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, settings: RankerSettings, width: int) -> None:
        super().__init__()
        self.settings, self.width = settings, width
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.project = nn.Linear(width, settings.hidden)
        self.block = _block(settings)

    def standardise(self, states: torch.Tensor) -> None:
        """Takes mean and deviation from training states `[N, width]`."""
        values = states.double()
        self.mean.copy_(values.mean(dim=0))
        self.scale.copy_(values.std(dim=0, correction=0).clamp(min=1e-6))

    def forward(
        self, instruction: torch.Tensor, answers: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scores `[B, m]` in [-1, 1] of `instruction` `[B, width]` and `answers` `[B, m, width]`.

        `mask` `[B, m]`: True where there is an answer (None: everywhere); what stands elsewhere changes no score.
        """
        there = torch.ones(answers.shape[:2], dtype=torch.bool, device=answers.device) if mask is None else mask
        states = torch.cat([instruction.unsqueeze(1), answers], dim=1).float()
        # Whatever lies in the padding (it may be no number) must not come through as 0 · it.
        padded = nn.functional.pad(~there, (1, 0), value=False)
        states = ((states - self.mean) / self.scale).masked_fill(padded.unsqueeze(-1), 0.0)
        seen = self.project(states)
        out = self.block(seen, src_key_padding_mask=padded) if self.settings.kind == LISTWISE else self.block(seen)
        unit = normalize(out, dim=-1)
        return (unit[:, :1] * unit[:, 1:]).sum(dim=-1).masked_fill(~there, 0.0)

    @torch.no_grad()
    def scores(self, states: torch.Tensor) -> list[float]:
        """Scores of one list: `states` `[1 + m, width]`, the instruction's first."""
        training = self.training
        self.eval()
        try:
            states = states.to(self.mean.device)
            found: list[float] = self(states[:1], states[1:].unsqueeze(0))[0].tolist()
        finally:
            self.train(training)
        return found


class _Alone(nn.Module):
    """The block without attention: every row by itself."""

    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * hidden, hidden)
        )
        self.norm, self.dropout = nn.LayerNorm(hidden), nn.Dropout(dropout)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """`[B, n, hidden]` to the same."""
        found: torch.Tensor = self.norm(rows + self.dropout(self.inner(rows)))
        return found


def _block(settings: RankerSettings) -> nn.Module:
    if settings.kind != LISTWISE:
        return _Alone(settings.hidden, settings.dropout)
    return nn.TransformerEncoderLayer(
        settings.hidden, settings.heads, 4 * settings.hidden, settings.dropout, activation="gelu", batch_first=True
    )
