"""Lists of states in which one direction tells good answers from others."""

from __future__ import annotations

import torch

from safealign.ranking import StateList

WIDTH = 24


def planted(n: int, seed: int, *, m: int = 6, strength: float = 6.0) -> list[StateList]:
    """`n` lists of `m` answers, about half of them good; the direction is the same for every seed."""
    direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(99))
    direction /= direction.norm()
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index in range(n):
        good = torch.rand(m, generator=generator) > 0.5
        good[0], good[1] = True, False
        noise = torch.randn(m, WIDTH, generator=generator)
        answers = noise + strength * (good.float()[:, None] - 0.5) * direction
        label = "malicious" if index % 2 else "benign"
        found.append(StateList(torch.randn(WIDTH, generator=generator), answers, good, label, "planted", str(index)))
    return found
