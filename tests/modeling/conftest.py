"""A tiny model with a random head, bare or under an adapter, and a card to export it with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from safealign.data.rendering import Renderer
from safealign.layout import build_layout, refresh_row, request_row, window_row
from safealign.layout.collate import collate_layouts
from safealign.modeling.attach import HEAD_NAME, TOKEN_NAME, SafetyParts, attach
from safealign.modeling.checkpoint import SafetyCard
from safealign.modeling.features import batch_logits, plan_for
from safealign.modeling.loading import LoadedExport, load_base
from safealign.modeling.safety_token import HeadSettings
from safealign.modeling.tiny import tiny_tokenizer, write_tiny

SETTINGS = HeadSettings((0.5, 1.0), ("row", "mean", "last"))
TURNS = (
    {"role": "user", "content": "Tell me about the ocean"},
    {"role": "assistant", "content": "Well, it is deep and cold."},
)
RENDERER = Renderer(tiny_tokenizer())


@dataclass
class Built:
    """A model (`lm` is what trains: the causal LM or PEFT's wrapper) with what is needed to export it."""

    lm: Any
    parts: SafetyParts
    tokenizer: Any
    base: str
    card: SafetyCard

    def outputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """LM logits `[T, V]` and verdicts `[S]` of one fixed layout."""
        return outputs_of(self.lm, self.parts)


def outputs_of(lm: Any, parts: SafetyParts) -> tuple[torch.Tensor, torch.Tensor]:
    text = RENDERER.render(TURNS)
    rows = [request_row(text), window_row(text, *text.response), refresh_row(text, 3)]
    batch = collate_layouts([build_layout(text, rows, versions=(0, 2))])
    with torch.no_grad(), parts.armed(plan_for(batch)) as capture:
        logits = lm(input_ids=torch.tensor([text.input_ids]), use_cache=False).logits
    return logits[0].detach(), batch_logits(parts, capture, batch)[0].detach()


def plain_logits(lm: Any) -> torch.Tensor:
    """LM logits of the same text without any safety row."""
    with torch.no_grad():
        return lm(input_ids=torch.tensor([RENDERER.render(TURNS).input_ids])).logits[0]


def loaded_outputs(export: LoadedExport) -> tuple[torch.Tensor, torch.Tensor]:
    return outputs_of(export.lm, export.parts)


def card() -> SafetyCard:
    return SafetyCard(
        SETTINGS,
        "append",
        False,
        "Sorry, no",
        "No.",
        {"tau": 2},
        {"query": 1.5, "window": None},
        {"note": "x"},
    )


def _randomise(parts: SafetyParts, lm: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    wanted = [p for n, p in lm.named_parameters() if p.requires_grad and ("lora_" in n or "safety_" in n)]
    buffers = [b for n, b in lm.named_buffers() if n.endswith(("safety_head.mean", "default.mean"))]
    with torch.no_grad():
        for tensor in (*wanted, *buffers):
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of untrained models, one for each family, and one of the same family with other weights."""
    folder = tmp_path_factory.mktemp("bases")
    made = {family: write_tiny(folder / family, family) for family in ("llama", "qwen2")}
    return made | {"other": write_tiny(folder / "other", "llama", seed=9)}


@pytest.fixture
def build(bases: dict[str, Path]) -> Callable[..., Built]:
    """Makes a model with trained-looking safety parts; `adapter` wraps it as the trainer does."""

    def make(family: str = "llama", adapter: bool = False) -> Built:
        lm, tokenizer = load_base(str(bases[family]))
        parts = attach(lm, SETTINGS)
        if adapter:
            names = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]
            saved = [TOKEN_NAME, HEAD_NAME]
            lm = get_peft_model(lm, LoraConfig(r=4, target_modules=names, modules_to_save=saved)).eval()
        _randomise(parts, lm)
        return Built(lm, parts, tokenizer, str(bases[family]), card())

    return make


@pytest.fixture
def probe() -> Any:
    """The two ways to look at a model: with safety rows, and bare."""

    class Probe:
        outputs = staticmethod(outputs_of)
        exported = staticmethod(loaded_outputs)
        plain = staticmethod(plain_logits)

    return Probe
