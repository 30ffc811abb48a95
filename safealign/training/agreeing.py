"""A yes or no that all ranks must act on alike."""

from __future__ import annotations

from typing import Any

import torch


def on_any_rank(accelerator: Any, flag: bool) -> bool:
    """Is `flag` set on at least one rank? Every rank calls it, and gets the same answer."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.gather(torch.tensor([flag], device=accelerator.device)).any())
