"""Which architectures are supported: each check on each, what is refused and why, and the table of both."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from checks import CHECKS
from refused import REFUSED
from table import outcome, reason, table
from transformers import Qwen2Config, Qwen2ForCausalLM

from safealign.config import compose
from safealign.config.groups import ModelConfig
from safealign.errors import UnsupportedModelError
from safealign.modeling.architectures import check_supported
from safealign.modeling.attach import RowPlan, attach
from safealign.modeling.safety_token import HeadSettings
from safealign.modeling.tiny import ARCHITECTURES, tiny_model


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_supported(name: str, check: str) -> None:
    error = outcome(name, check)
    if error is not None:
        raise error


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(name: str) -> None:
    assert REFUSED[name][1] in reason(name)


def test_the_committed_table_is_what_the_checks_say(root: Path, request: pytest.FixtureRequest) -> None:
    path = root / "docs" / "architectures.md"
    if request.config.getoption("--write-table"):
        path.write_text(table(), encoding="utf-8")
    assert path.read_text(encoding="utf-8") == table(), "run python -m pytest tests/architectures --write-table"


def test_the_config_knows_every_architecture() -> None:
    for name in ARCHITECTURES:
        assert compose(["model=tiny_random", f"model.architecture={name}"]).model.architecture == name
    choices = ModelConfig.__dataclass_fields__["architecture"].metadata["options"]
    assert set(choices) == set(ARCHITECTURES)


def test_qwen2_with_windows_in_its_later_layers_is_itself() -> None:
    """Its released models leave them off, so the tiny one does too."""
    more = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1, "num_key_value_heads": 2}
    size = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    lm = Qwen2ForCausalLM(Qwen2Config(**size, **more, num_attention_heads=2)).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(6.0)
    parts, ids = attach(lm, HeadSettings()), torch.arange(1, 25)[None]
    causal = torch.full((24, 24), torch.finfo(torch.float32).min).triu(1)[None, None]
    with torch.no_grad():
        wanted = lm(input_ids=ids, use_cache=False).logits
        with parts.armed(RowPlan(0, causal, torch.arange(24)[None])):
            found = lm(input_ids=ids, use_cache=False).logits
        lm.config.sliding_window = None
        unlimited = lm(input_ids=ids, attention_mask=causal, use_cache=False).logits
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(unlimited, wanted, atol=1e-4)


def test_a_model_of_images_and_text_is_refused() -> None:
    lm = tiny_model("gemma3")
    lm.config.vision_config = SimpleNamespace()
    with pytest.raises(UnsupportedModelError, match="text-only"):
        check_supported(lm)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_half_precision_is_accepted_as_well(name: str) -> None:
    check_supported(tiny_model(name).to(torch.bfloat16))


def test_trying_a_model_leaves_it_as_it_was() -> None:
    lm = tiny_model().train()
    before = [p.detach().clone() for p in lm.parameters()]
    check_supported(lm)
    assert lm.training and all(torch.equal(a, b) for a, b in zip(before, lm.parameters(), strict=True))
    assert not any(module._forward_hooks for module in lm.modules())
