"""Tiny random models with a random safety head, for decoding tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from safealign.data.rendering import Renderer
from safealign.decoding import (
    CachedEngine,
    CalibratedThresholds,
    Decoder,
    DecodingOptions,
    Prompt,
    RowSettings,
)
from safealign.decoding.policy import Policy, RefusalTexts
from safealign.decoding.reference import ReferenceAnswer, ReferenceDecoder
from safealign.modeling.attach import SafetyParts, attach
from safealign.modeling.safety_token import HeadSettings
from safealign.modeling.tiny import tiny_model, tiny_tokenizer

TRIGGER = "Sorry, no"
PROMPTS = (
    [{"role": "user", "content": "Tell me about the ocean and the weather in the north"}],
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "What is a kite?"}],
    [
        {"role": "user", "content": "Name a tree."},
        {"role": "assistant", "content": "The oak."},
        {"role": "user", "content": "And another one, please, with its height?"},
    ],
    [{"role": "user", "content": "Continue"}, {"role": "assistant", "content": "Once upon a time in the"}],
    [{"role": "user", "content": "Say it"}, {"role": "assistant", "content": "A"}],
)


@dataclass
class World:
    """A model, its head and its renderer, with both decoders over them."""

    lm: Any
    parts: SafetyParts
    renderer: Renderer
    settings: RowSettings

    def prompts(self, conversations: Sequence[Sequence[dict[str, str]]] = PROMPTS) -> list[Prompt]:
        return [Prompt(self.renderer.render(messages, close=False)) for messages in conversations]

    def decoder(
        self,
        options: DecodingOptions,
        thresholds: CalibratedThresholds,
        eos: Sequence[int] | None = None,
        **more: Any,
    ) -> Decoder:
        parts = self.parts if options.safety else None
        engine = CachedEngine(self.lm, parts, self.settings, gate=options.gate)
        eos_ids = self.renderer.eos_ids if eos is None else eos
        return Decoder(engine, options, encoder=self.renderer, eos_ids=eos_ids, calibrated=thresholds, **more)

    def reference(
        self,
        prompt: Prompt,
        options: DecodingOptions,
        thresholds: CalibratedThresholds,
        eos: Sequence[int] | None = None,
        **more: Any,
    ) -> ReferenceAnswer:
        rules = more.pop("rules", None) or options.rules(thresholds)
        policy = Policy(self.renderer, RefusalTexts(options.trigger, options.refusal))
        decoder = ReferenceDecoder(
            self.parts,
            self.settings,
            rules,
            policy,
            self.renderer.eos_ids if eos is None else eos,
            gate=options.gate,
            max_new_tokens=options.max_new_tokens,
            **more,
        )
        return decoder.decode(prompt)


def make_world(
    seed: int = 0,
    architecture: str = "llama",
    layers: tuple[float, ...] = (0.5, 1.0),
    pool: tuple[str, ...] = ("row", "mean", "last"),
    settings: RowSettings | None = None,
) -> World:
    """A tiny model whose head is random but strong, so that verdicts vary and the slot changes the text."""
    generator = torch.Generator().manual_seed(seed)
    lm = tiny_model(architecture, seed)
    with torch.no_grad():
        for parameter in lm.parameters():  # larger weights and an output layer of its own: greedy text that varies
            if parameter.ndim == 2:
                parameter.mul_(4.0)
        output = lm.get_output_embeddings()
        output.weight = torch.nn.Parameter(torch.randn(output.weight.shape, generator=generator))
    parts = attach(lm, HeadSettings(layers, pool, token_layers=(0.75,)))
    with torch.no_grad():
        parts.token.weight.copy_(torch.randn(parts.token.weight.shape, generator=generator) * 0.3)
        weight = torch.randn(parts.head.linear.weight.shape, generator=generator)
        parts.head.linear.weight.copy_(weight * 0.5)
        assert parts.token_head is not None
        parts.token_head.linear.weight.copy_(torch.randn(parts.token_head.linear.weight.shape, generator=generator))
    return World(lm, parts, Renderer(tiny_tokenizer()), settings or RowSettings())
