"""Which causal LMs can carry safety rows, and in which form each takes its masks.

A plain 4-D mask replaces whatever mask a model would have made, its sliding window included. So layers with a window
get the window in their mask: one mask for all layers where all are alike, one per layer type where the model's code
takes a dict. What a model does with a mask is tried before it is believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from safealign.errors import UnsupportedModelError
from safealign.layout.masks import windowed

FULL, SLIDING = "full_attention", "sliding_attention"
_MOVING_ROPES = frozenset({"dynamic", "longrope"})
# `model_type`s whose windows are tested against the model's own (tests/architectures).
WINDOWED = frozenset({"mistral", "phi3", "qwen2", "qwen3", "gemma2", "gemma3_text"})


@dataclass(frozen=True)
class LayerMasks:
    """`kinds`: the types of a model's layers; `window`: how many text rows its sliding ones see, own row included."""

    kinds: frozenset[str] = frozenset({FULL})
    window: int | None = None

    def argument(
        self,
        mask: torch.Tensor,
        text_rows: torch.Tensor | None = None,
        text_columns: torch.Tensor | None = None,
        n_safety: int = 0,
    ) -> Any:
        """What to pass as the decoder's `attention_mask`: `mask` `[B, 1, Q, K]`, or a dict of masks by layer type."""
        if self.window is None:
            return mask
        near = windowed(mask, self.window, text_rows, text_columns, n_safety)
        return near if self.kinds == {SLIDING} else {FULL: mask, SLIDING: near}


def layer_masks(lm: nn.Module) -> LayerMasks:
    """How this model takes its masks. Raises UnsupportedModelError for layer types that no mask can serve."""
    config: Any = lm.config
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    kinds = frozenset(getattr(config, "layer_types", None) or {SLIDING if window else FULL})
    name = type(lm).__name__
    if strange := sorted(kinds - {FULL, SLIDING}):
        raise UnsupportedModelError(
            f"{name} has layers of type {', '.join(strange)}, which the safety token's mask cannot reach; "
            "choose a model whose layers all have full or sliding-window attention"
        )
    if SLIDING not in kinds:
        return LayerMasks()
    if window is None or config.model_type not in WINDOWED:
        raise UnsupportedModelError(
            f"{name} uses sliding-window attention (window {window}), and how its code takes a mask for it was never "
            f"tested; choose one of {', '.join(sorted(WINDOWED))}, or a model with full attention"
        )
    return LayerMasks(kinds, int(window))


def decoder_layers(lm: nn.Module) -> nn.ModuleList:
    """The decoder's blocks, shallow to deep."""
    decoder: nn.Module = lm.get_decoder()  # type: ignore[operator]
    for name in ("layers", "h", "blocks"):
        layers = getattr(decoder, name, None)
        if isinstance(layers, nn.ModuleList):
            return layers
    raise UnsupportedModelError(
        f"{type(lm).__name__} has no list of decoder blocks that safealign knows; choose another model"
    )


def check_supported(lm: nn.Module) -> None:
    """Refuses, with a reason, models whose attention cannot express the safety rows' mask.

    Beside what the config says, the first blocks are run on four tokens: see `_check_forward`.
    """
    config: Any = getattr(lm, "config", None)
    name = type(lm).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{name} is an encoder-decoder: its request and answer have attention of their own, and the safety token "
            "needs one that both share; choose a decoder-only model"
        )
    if not hasattr(lm, "get_decoder") or not hasattr(lm, "get_input_embeddings"):
        raise UnsupportedModelError(f"{name} is no causal language model with a decoder; safealign cannot attach to it")
    if getattr(config, "vision_config", None) is not None or getattr(config, "audio_config", None) is not None:
        raise UnsupportedModelError(f"{name} also takes images or sound; choose the text-only model of its family")
    if _has_alibi(config):
        raise UnsupportedModelError(
            f"{name} uses ALiBi, which places tokens by their order in memory; the safety token stands by its position "
            "id alone; choose a model with rotary positions"
        )
    if moving := _moving_rope(config):
        raise UnsupportedModelError(
            f"{name} has rotary positions of type {moving}, which change with the longest text of a batch: a verdict "
            "would depend on the neighbours, and cached keys would be of another kind than new ones; choose a model "
            "without them, for Phi-3 one of those with a context of 4k"
        )
    if getattr(config, "_attn_implementation", "sdpa") not in ("sdpa", "eager"):
        raise UnsupportedModelError(
            f"{name} was loaded with {config._attn_implementation} attention; load it with model.attn=sdpa or eager"
        )
    masks = layer_masks(lm)
    was_training = lm.training
    lm.eval()
    try:
        _check_forward(lm, masks, name)
    finally:
        lm.train(was_training)


def _moving_rope(config: Any) -> str:
    """The type of rotary positions whose frequencies depend on a forward's longest text; "" for none."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    every = [given, *(value for value in given.values() if isinstance(value, dict))]
    types = {str(one.get("rope_type", one.get("type", ""))) for one in every}
    return next(iter(sorted(types & _MOVING_ROPES)), "")


def _has_alibi(config: Any) -> bool:
    asked = getattr(config, "alibi", False) or getattr(getattr(config, "attn_config", None), "alibi", False)
    return bool(asked) or getattr(config, "model_type", "") == "bloom"


class _Seen(Exception):
    """Ends a probing forward: the blocks above would show nothing new."""


def _check_forward(lm: nn.Module, masks: LayerMasks, name: str) -> None:
    """Tries what the safety rows rely on, in the first blocks (as far as one of each type).

    Under a causal mask of ours the model must be itself; a row must not feel a token that the mask hides, must feel a
    later one that it shows (text sees the slot, which stands behind it), and must feel its position id.
    """
    ids, changed_first, changed_last = (1, 2, 3, 4), (5, 2, 3, 4), (1, 2, 3, 5)
    open_ = torch.ones(4, 4, dtype=torch.bool).tril()
    hidden = torch.eye(4, dtype=torch.bool)
    hidden[2, 1] = hidden[0, 3] = True  # beside themselves, row 0 sees the last token and row 2 the one before it
    try:
        wanted, causal = _states(lm, ids, None), _states(lm, ids, masks, open_)
        base, first, last = (_states(lm, x, masks, hidden) for x in (ids, changed_first, changed_last))
        moved = _states(lm, ids, masks, hidden, positions=(0, 1, 3, 3))
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnsupportedModelError(
            f"{name} does not take an explicit mask and position ids ({reason}); choose a model with rotary positions "
            "and softmax attention"
        ) from error
    table: torch.Tensor = lm.get_input_embeddings().weight  # type: ignore[operator]
    exact = table.dtype is torch.float32
    # A few numbers of random weights in bf16 may round to what they were.
    placed = (moved[2] - base[2]).abs().max() > 0 or not (exact or table.shape[1] >= 256)
    felt = (last[0] - base[0]).abs().max()  # the measure: what a visible token changes
    leak = max((first[1:] - base[1:]).abs().max(), (last[1:3] - base[1:3]).abs().max())
    for right, reason in (
        (felt > 0, "a row does not feel a later token that the mask shows it"),
        (leak <= 1e-3 * felt, "a row feels a token that the mask hides from it"),
        (placed, "it places tokens by their order, not by their position ids"),
        (
            (causal - wanted).abs().max() <= (1e-3 if exact else 0.2) * felt,
            "under a causal mask of ours its states are not its own",
        ),
    ):
        if not right:
            raise UnsupportedModelError(
                f"{name} cannot express the safety token's attention: {reason}; choose a model with rotary positions "
                "and softmax attention"
            )


@torch.no_grad()
def _states(
    lm: nn.Module,
    ids: Sequence[int],
    masks: LayerMasks | None,
    allowed: torch.Tensor | None = None,
    positions: tuple[int, ...] = (0, 1, 2, 3),
) -> torch.Tensor:
    """The four rows' states after the first blocks, as far as one of each layer type; `masks` None: the model's own."""
    table: torch.Tensor = lm.get_input_embeddings().weight  # type: ignore[operator]
    device, call = table.device, dict[str, Any](use_cache=False)
    if masks is not None and allowed is not None:
        mask = torch.zeros(1, 1, 4, 4, dtype=table.dtype).masked_fill_(~allowed, torch.finfo(table.dtype).min)
        call |= {"attention_mask": masks.argument(mask.to(device))}
        call |= {"position_ids": torch.tensor([positions], device=device)}
    caught: list[torch.Tensor] = []

    def catch(module: nn.Module, args: Any, output: Any) -> None:
        caught.append((output[0] if isinstance(output, tuple) else output)[0])
        raise _Seen

    handle = decoder_layers(lm)[_deepest_probe(lm) - 1].register_forward_hook(catch)
    try:
        lm.get_decoder()(input_ids=torch.tensor([list(ids)], device=device), **call)  # type: ignore[operator]
    except _Seen:
        pass
    finally:
        handle.remove()
    return caught[0].float()


def _deepest_probe(lm: nn.Module) -> int:
    """How many blocks hold one of each layer type."""
    kinds = list(getattr(lm.config, "layer_types", None) or [FULL])
    return max(kinds.index(kind) for kind in set(kinds)) + 1
