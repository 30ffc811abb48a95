"""Tiny random models of both families under both kinds of attention, with a strong random head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from safealign.data.rendering import Renderer
from safealign.layout import Layout, Rendered, SafetyRow, build_layout, refresh_row, request_row, window_row
from safealign.layout.collate import collate_layouts
from safealign.modeling.attach import SafetyParts, attach
from safealign.modeling.features import batch_logits, plan_for
from safealign.modeling.safety_token import HeadSettings
from safealign.modeling.texts import pad_ids
from safealign.modeling.tiny import tiny_model, tiny_tokenizer

ANSWERED = (
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Name a tree."},
    {"role": "assistant", "content": "The oak."},
    {"role": "user", "content": "Tell me about the ocean"},
    {"role": "assistant", "content": "Well, it is deep and cold and wide."},
)


@dataclass
class Seen:
    """One row of a batched forward: LM logits `[T, V]`, verdicts `[S]`, states `[T+S, depths, H]`."""

    lm: torch.Tensor
    verdicts: torch.Tensor
    states: torch.Tensor


@dataclass
class Model:
    """A model with its safety parts, and forwards with and without safety rows."""

    lm: Any
    parts: SafetyParts
    renderer: Renderer

    @torch.no_grad()
    def plain(self, ids: Sequence[int]) -> Any:
        """The bare model's own forward: `logits`, `hidden_states`."""
        return self.lm(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)

    @torch.no_grad()
    def forward(self, ids: Sequence[Sequence[int]], layouts: Sequence[Layout], pad: int = 0) -> list[Seen]:
        """One armed forward of a batch, padding cut off again."""
        batch = collate_layouts(layouts)
        with self.parts.armed(plan_for(batch)) as capture:
            logits = self.lm(input_ids=pad_ids(ids, pad), use_cache=False).logits
        verdicts, states = batch_logits(self.parts, capture, batch), capture.states
        n_text, found = logits.shape[1], []
        for row, layout in enumerate(layouts):
            keep = [*range(layout.n_text), *(n_text + i for i in range(len(layout.safety)))]
            found.append(Seen(logits[row, : layout.n_text], verdicts[row, : len(layout.safety)], states[row, keep]))
        return found

    def one(self, rendered: Rendered, rows: Sequence[SafetyRow], **how: Any) -> Seen:
        """The armed forward of one layout."""
        return self.forward([rendered.input_ids], [build_layout(rendered, rows, **how)])[0]

    @torch.no_grad()
    def attention_of(self, rendered: Rendered, layout: Layout, index: int) -> torch.Tensor:
        """What safety row `index` gives to every row in all heads of all blocks: `[blocks·heads, T+S]`.

        Read off the attention modules (eager), or, where they hide their weights, off the mask they get.
        """
        caught: list[torch.Tensor] = []
        batch, row = collate_layouts([layout]), layout.n_text + index

        def keep(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            weights, mask = output[1], kwargs["attention_mask"]
            caught.append((mask == 0).float()[0, :, row] if weights is None else weights[0, :, row])

        modules = [layer.self_attn for layer in self.parts.layers]
        handles = [module.register_forward_hook(keep, with_kwargs=True) for module in modules]
        try:
            with self.parts.armed(plan_for(batch)):
                self.lm(input_ids=torch.tensor([rendered.input_ids]), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return torch.cat(caught)

    def answered(self) -> Rendered:
        """A conversation of several turns whose newest answer is closed."""
        return self.renderer.render(ANSWERED)


def make_model(architecture: str, attention: str, **head: Any) -> Model:
    """Weights are enlarged and the token is random: what must not change would change visibly."""
    generator = torch.Generator().manual_seed(1)
    lm = tiny_model(architecture)
    lm.set_attn_implementation(attention)
    settings = HeadSettings(**{"layers": (0.5, 1.0), "pool": ("row", "mean", "last")} | head)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
            elif architecture == "qwen2" and parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        parts = attach(lm, settings)
        for tensor in (parts.token.weight, parts.head.linear.weight):
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return Model(lm, parts, Renderer(tiny_tokenizer()))


@pytest.fixture(
    scope="session",
    params=[(family, attention) for family in ("llama", "qwen2") for attention in ("eager", "sdpa")],
    ids="-".join,
)
def model(request: pytest.FixtureRequest) -> Model:
    return make_model(*request.param)


@pytest.fixture(params=["append", "prepend"])
def placement(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def many_rows(placement: str) -> Any:
    """A row of each kind, windows that see the query among them, for any rendered answer."""

    def make(text: Rendered) -> list[SafetyRow]:
        start = text.response.start
        return [
            request_row(text, placement),
            window_row(text, start, start + 4, placement),
            window_row(text, start + 2, start + 9, placement, sees_query=True),
            refresh_row(text, 3, placement),
            refresh_row(text, 6, placement),
        ]

    return make
