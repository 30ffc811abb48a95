"""The one place where hidden states are taken out of a model: the outputs of chosen decoder blocks.

Only the depths asked for are kept. A hook lives as long as its `with` block, whatever ends that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from safealign.modeling.architectures import decoder_layers

Blocks = dict[int, torch.Tensor]


class DeepEnough(Exception):
    """Ends a forward whose deepest depth is caught: the blocks above it would compute nothing that is read."""


@contextmanager
def tapped(lm: nn.Module, depths: Sequence[int], *, stop: bool = False) -> Iterator[Blocks]:
    """While open, every forward of the causal LM `lm` leaves its states `[B, T, H]` by depth, the newest ones.

    Depth l is the output of block l counted from 1, and the number of blocks stands for the output after the final
    norm: `hidden_states[l]` of transformers. Gradients pass. `stop`: a forward ends with `DeepEnough` at the deepest.
    """
    layers, blocks = decoder_layers(lm), Blocks()
    handles = []
    try:
        for depth in sorted(set(depths)):
            whole = depth == len(layers)
            module: nn.Module = lm.get_decoder() if whole else layers[depth - 1]  # type: ignore[operator]
            hook = _keeping(blocks, depth, whole, stop and depth == max(depths))
            # First: what stands on the decoder besides may shorten its output.
            handles.append(module.register_forward_hook(hook, prepend=True))
        yield blocks
    finally:
        for handle in handles:
            handle.remove()


def _keeping(blocks: Blocks, depth: int, whole: bool, last: bool) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        """Keeps the block's output."""
        found = output.last_hidden_state if whole else output
        blocks[depth] = found[0] if isinstance(found, tuple) else found
        if last:
            raise DeepEnough

    return hook
