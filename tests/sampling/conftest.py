"""Samplers of a tiny talkative model, with a cache of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import talkative_model

from safealign.data.rendering import Renderer
from safealign.modeling.tiny import tiny_tokenizer
from safealign.sampling import Labeller, Sampler, SamplingSettings

SETTINGS = SamplingSettings(everyday=6, everyday_max_new_tokens=6, compliant=5, compliant_max_new_tokens=24)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return talkative_model()


@pytest.fixture
def sampler(model: Any, tmp_path: Path) -> Callable[..., Sampler]:
    def make(
        lm: Any = None,
        renderer: Renderer | None = None,
        *,
        folder: Path = tmp_path,
        labeller: Labeller | None = None,
        say: Callable[[str], None] | None = None,
        only_cached: bool = False,
        **changes: Any,
    ) -> Sampler:
        settings = replace(SETTINGS, **changes)
        how: dict[str, Any] = {"labeller": labeller, "say": say, "only_cached": only_cached}
        return Sampler(lm or model, renderer or Renderer(tiny_tokenizer()), settings, folder, **how)

    return make
