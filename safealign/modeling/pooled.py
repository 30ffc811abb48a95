"""States pooled over the places of a batch of texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from safealign.modeling.texts import Text


class Places:
    """Where a batch is read: weights of the means `[B, P, T]`, last rows `[B, P]`; the rest is padding."""

    def __init__(self, texts: Sequence[Text], n_text: int, device: torch.device) -> None:
        self.n_text, most = n_text, max(len(text.places) for text in texts)
        weights, last = torch.zeros(len(texts), most, n_text), torch.zeros(len(texts), most, dtype=torch.long)
        for at, text in enumerate(texts):
            for index, spans in enumerate(text.places):
                length = sum(span.length for span in spans)
                last[at, index] = max((span.end - 1 for span in spans if span.length), default=0)
                for span in spans:
                    weights[at, index, span.start : span.end] = 1.0 / max(1, length)
        self.weights, self.last, self.most = weights.to(device), last.to(device), most

    def pool(self, states: torch.Tensor, pools: Sequence[str]) -> torch.Tensor:
        """`[B, P, pools, H]` in fp32 of states `[B, T+S, H]`."""
        text = states[:, : self.n_text]
        found = []
        for name in pools:
            if name == "mean":
                found.append(torch.einsum("bpt,bth->bph", self.weights, text.float()))
            elif name == "last":
                found.append(text[torch.arange(len(text), device=text.device)[:, None], self.last].float())
            else:
                found.append(states[:, self.n_text :][:, : self.most].float())
        return torch.stack(found, dim=2)
