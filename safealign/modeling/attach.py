"""Attaches the safety token and head to any Hugging Face causal LM through hooks on its decoder.

The rows are invisible to the caller: while *armed*, a forward of the model gets S safety rows behind its text
rows, runs under the explicit float mask and position ids of the plan, and returns text rows only. Hooks sit on the
decoder and its blocks because PEFT calls the causal LM's `forward` directly, which skips hooks on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from safealign.layout import RowKind
from safealign.modeling.architectures import check_supported, decoder_layers, layer_masks
from safealign.modeling.safety_token import HeadSettings, SafetyHead, SafetyToken
from safealign.modeling.taps import tapped

TOKEN_NAME = "safety_token"
HEAD_NAME = "safety_head"
TOKEN_HEAD_NAME = "safety_token_head"
INITS = ("mean", "assistant_role")


@dataclass
class RowPlan:
    """What an armed forward does with T text and S safety rows.

    `mask`: additive float `[B, 1, T+S, K]` with K = cached columns + T + S. `position_ids`: `[B, T+S]`.
    `compact`: optional bool `[B, T]`; the decoder then returns only those text rows, flattened to `[1, N, H]`
    (so that a language-model head scores completion positions only). `capture` off spares the head's states.
    `features_only`: the forward ends with `DeepEnough` once the head's deepest block is done. `last_only`: the
    decoder returns the last text row alone, `[B, 1, H]`. `text_rows`, `text_columns`: as in `masks.windowed`, for a
    cached forward.
    """

    n_safety: int
    mask: torch.Tensor
    position_ids: torch.Tensor
    compact: torch.Tensor | None = None
    capture: bool = True
    features_only: bool = False
    last_only: bool = False
    text_rows: torch.Tensor | None = None
    text_columns: torch.Tensor | None = None


@dataclass
class Capture:
    """States caught during one armed forward: `states` is `[B, T+S, n_depths, H]` in fp32, at the head's depths."""

    plan: RowPlan
    depths: tuple[int, ...]
    blocks: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def states(self) -> torch.Tensor:
        """All rows' states at the head's depths, shallow to deep."""
        return self.at(self.depths)

    def at(self, depths: Sequence[int]) -> torch.Tensor:
        """All rows' states `[B, T+S, len(depths), H]` at these depths, in fp32."""
        return torch.stack([self.blocks[depth].float() for depth in depths], dim=2)

    def row_states(self) -> torch.Tensor:
        """The safety rows' states `[B, S, n_depths, H]`."""
        return self.states[:, -self.plan.n_safety :]


class SafetyParts:
    """The attached modules and the hooks that drive them.

    `lm` is the causal LM (never a PEFT wrapper); `lm.safety_token` and `lm.safety_head` are its submodules, so
    that PEFT's `modules_to_save` finds them.
    """

    def __init__(self, lm: nn.Module, settings: HeadSettings) -> None:
        self.lm = lm
        self.settings = settings
        self.masks = layer_masks(lm)
        self.decoder: nn.Module = lm.get_decoder()  # type: ignore[operator]
        self.layers = decoder_layers(lm)
        self.depths = settings.blocks(len(self.layers))
        self.token_depths = settings.token_blocks(len(self.layers))
        self._read = sorted({*self.depths, *self.token_depths})  # every depth that any head reads
        self.hidden_size: int = lm.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
        self._active: Capture | None = None
        self._handles = self._hook()

    @property
    def token(self) -> nn.Module:
        """The safety token (or PEFT's wrapper of it)."""
        return getattr(self.lm, TOKEN_NAME)

    @property
    def head(self) -> nn.Module:
        """The safety head (or PEFT's wrapper of it)."""
        return getattr(self.lm, HEAD_NAME)

    @property
    def token_head(self) -> SafetyHead | None:
        """The head that reads a generated token's own state; None for a model without one."""
        found: SafetyHead | None = getattr(self.lm, TOKEN_HEAD_NAME, None)
        return found

    @contextmanager
    def armed(self, plan: RowPlan, depths: Sequence[int] | None = None) -> Iterator[Capture]:
        """While open, the next forwards of the model carry the plan's safety rows.

        `depths`: what is captured where it is not what the heads read.
        """
        if self._active is not None:
            raise RuntimeError("the safety rows are armed already")
        read = (self._read if depths is None else depths) if plan.capture else ()
        with tapped(self.lm, read, stop=plan.features_only) as blocks:
            self._active = Capture(plan, self.depths if depths is None else tuple(depths), blocks)
            try:
                yield self._active
            finally:
                self._active = None

    def features(
        self, row: torch.Tensor, mean: torch.Tensor | None = None, last: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Concatenates the pools the head asks for; each input `[..., n_depths, H]`, output `[..., width]`."""
        parts = {"row": row, "mean": mean, "last": last}
        wanted = [parts[name] for name in self.settings.pool]
        if any(part is None for part in wanted):
            raise ValueError(f"this head pools {self.settings.pool}; some of these states were not given")
        return torch.cat([part.float().flatten(-2) for part in wanted if part is not None], dim=-1)

    def score(
        self,
        kinds: torch.Tensor,
        row: torch.Tensor,
        mean: torch.Tensor | None = None,
        last: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Safety logits in fp32, shape of the leading dimensions; `kinds` are the rows' `RowKind`s."""
        return self.head(self.features(row, mean, last), self.readouts(kinds))

    def readouts(self, kinds: torch.Tensor) -> torch.Tensor:
        """Which of the head's read-outs judges rows of these kinds."""
        if not self.settings.separate_windows:
            return torch.zeros_like(kinds)
        return (kinds == RowKind.WINDOW).long()

    def detach(self) -> None:
        """Removes every hook; the submodules stay."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self) -> list[Any]:
        handles = [self.decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True)]
        handles.append(self.decoder.register_forward_hook(self._after_decoder))
        return handles

    def _before_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._active is None:
            return None
        plan = self._active.plan
        embeds = kwargs.get("inputs_embeds")
        if embeds is None:
            input_ids = kwargs.get("input_ids", args[0] if args else None)
            embeds = self.lm.get_input_embeddings()(input_ids)  # type: ignore[operator]
        if plan.n_safety:
            token = self.token(embeds.shape[0], plan.n_safety).to(embeds.dtype)
            embeds = torch.cat([embeds, token], dim=1)
        kwargs = {**kwargs, "input_ids": None, "inputs_embeds": embeds, "position_ids": plan.position_ids}
        mask = plan.mask.to(embeds.dtype)
        kwargs["attention_mask"] = self.masks.argument(mask, plan.text_rows, plan.text_columns, plan.n_safety)
        return (), kwargs

    def _after_decoder(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self._active is None:
            return None
        plan, hidden = self._active.plan, output.last_hidden_state
        text = hidden[:, : hidden.shape[1] - plan.n_safety]
        if plan.last_only:
            # A copy: of a slice, matmul with frozen weights would expand the vocabulary's matrix for each sequence.
            text = text[:, -1:].contiguous()
        output.last_hidden_state = text if plan.compact is None else text[plan.compact].unsqueeze(0)
        return output


def attach(lm: nn.Module, settings: HeadSettings, init: str = "mean", role_ids: list[int] | None = None) -> SafetyParts:
    """Adds the safety token and head to a causal LM and hooks its decoder.

    `init`: `mean` (mean of all input embeddings) or `assistant_role` (mean of the embeddings of `role_ids`, the
    template's role token; alignment gathers there, arXiv 2510.18081). Raises UnsupportedModelError for models whose
    attention cannot express the safety rows' mask.
    """
    check_supported(lm)
    embedding: torch.Tensor = lm.get_input_embeddings().weight  # type: ignore[operator]
    hidden = embedding.shape[1]
    n_layers = len(decoder_layers(lm))
    if not hasattr(lm, TOKEN_NAME):
        token = SafetyToken(hidden).to(embedding.device)
        lm.add_module(TOKEN_NAME, token)
        head = SafetyHead(settings.width(n_layers, hidden), settings.n_readouts)
        if settings.separate_windows:
            head.reads[1] = settings.window_reads(n_layers, hidden)
        lm.add_module(HEAD_NAME, head.to(embedding.device))
        if settings.token_layers:
            inputs = len(settings.token_blocks(n_layers)) * hidden
            lm.add_module(TOKEN_HEAD_NAME, SafetyHead(inputs).to(embedding.device).requires_grad_(False))
        with torch.no_grad():
            token.weight.copy_(_initial_vector(lm, init, role_ids))
    return SafetyParts(lm, settings)


def _initial_vector(lm: nn.Module, init: str, role_ids: list[int] | None) -> torch.Tensor:
    table: Any = lm.get_input_embeddings()  # type: ignore[operator]
    # Where the embedding module scales what it looks up (Gemma), so must a vector that stands beside its output.
    scale = float(getattr(table, "embed_scale", 1.0))
    if init == "mean":
        return table.weight.float().mean(dim=0) * scale
    if init == "assistant_role" and role_ids:
        return table.weight[role_ids].float().mean(dim=0) * scale
    raise ValueError(f"init must be one of {INITS} (assistant_role needs the template's role ids), got {init!r}")
