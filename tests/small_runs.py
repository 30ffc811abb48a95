"""One optimiser step of our own trainer on a tiny model, set up from the config as the command sets it up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from safealign.config import TrainConfig, compose
from safealign.data.records import BENIGN, MALICIOUS, Message, Record
from safealign.data.rendering import Renderer
from safealign.model import SafeModel, load
from safealign.modeling.attach import SafetyParts
from safealign.modeling.checkpoint import SafetyCard
from safealign.modeling.exporting import export_model
from safealign.training.examples import build_examples
from safealign.training.pipeline import decoding_options
from safealign.training.prepare import TrainingData, example_settings
from safealign.training.run import attach_from, build_trainer

REQUESTS = ("Tell me about the ocean and the weather in the north", "Why is it cold?")
THETAS = {"theta_query": None, "theta_window": 0.5, "theta_prefix": None, "theta_token": None}
GREEDY = {"max_new_tokens": 12, "temperature": 0.0, "schedule": "every", **THETAS}


@dataclass
class SmallRun:
    """A model after one step; `before` holds its trainable weights as they were."""

    config: TrainConfig
    model: Any
    parts: SafetyParts
    renderer: Renderer
    before: dict[str, torch.Tensor]
    loss: float

    @property
    def card(self) -> SafetyCard:
        """A card as a run writes it, without thresholds."""
        options = decoding_options(self.config)
        from safealign.training.checks import head_settings

        safety, refusal = self.config.safety, str(options.pop("refusal"))
        reads = head_settings(self.config)
        return SafetyCard(reads, safety.placement, safety.windows.sees_query, safety.trigger, refusal, options)

    def live(self) -> SafeModel:
        return SafeModel(self.model, self.renderer.tokenizer, self.parts, self.card)

    def reloaded(self, folder: Path, merge: bool, base: str) -> SafeModel:
        """Exported, and loaded from there."""
        how: dict[str, Any] = {"merge": merge, "base_name": base}
        return load(export_model(folder, self.model, self.renderer.tokenizer, self.parts, self.card, **how))

    def moved(self, part: str) -> bool:
        """Whether the step changed any weight whose name contains `part`."""
        after = dict(self.model.named_parameters())
        return any(not torch.equal(old, after[name].detach()) for name, old in self.before.items() if part in name)


def answers_of(model: SafeModel) -> tuple[list[float], list[tuple[int, ...]]]:
    """p of each request, and its greedy answer under the rules."""
    talks = [[{"role": "user", "content": request}] for request in REQUESTS]
    outs = model.generate_batch(talks, **GREEDY)
    return model.score_batch(talks), [out.tokens for out in outs]


def records() -> list[Record]:
    """A few invented records of each label, with and without an answer."""
    found = []
    for i in range(4):
        fold = (Message("user", f"Fold paper bird number {i}"), Message("assistant", f"Fold sheet {i} once and twice."))
        deed = (Message("user", f"Do the placeholder misdeed {i}"), Message("assistant", "Sorry, no. I would not."))
        found += [Record(fold, BENIGN, BENIGN, id=f"good-{i}"), Record(deed, MALICIOUS, BENIGN, id=f"bad-{i}")]
    return found


def one_step(
    model: Any, tokenizer: Any, folder: Path, overrides: Sequence[str] = (), recipe: str = "llama_lora"
) -> SmallRun:
    """Attaches the safety parts, random but alike each time, and trains one step at a high learning rate."""
    fixed = ["debug=smoke", "trainer.max_steps=1", "trainer.learning_rate=0.02", "trainer.head_learning_rate=0.02"]
    config = compose([f"+recipe={recipe}", *fixed, f"run_dir={folder}", *overrides])
    renderer = Renderer(tokenizer)
    torch.manual_seed(0)
    parts = attach_from(config, model, renderer)
    with torch.no_grad():
        parts.token.weight.normal_(std=0.3)
        parts.head.linear.weight.normal_()
    examples = build_examples(records(), renderer, example_settings(config), config.seed)
    data = TrainingData(examples, [], [], [], [], [])
    trainer = build_trainer(config, model, renderer, data, parts, Console(quiet=True))
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    result = trainer.train()
    trainer.model.eval()
    return SmallRun(config, trainer.model, parts, renderer, before, result.training_loss)
