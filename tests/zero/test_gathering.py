"""What a run under ZeRO saves: whole tensors, those that were trained, in files that one process reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from safealign.modeling.attach import TOKEN_NAME
from safealign.training.checkpoints.store import whole

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]
STAGES = ["zero2", "zero3", "zero3_offload"]


def saved(run: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Adapter and safety parts of a run's last checkpoint."""
    folder: Path = whole(run.folder / "checkpoints" / "step-7").path
    return load_file(folder / "adapter_model.safetensors"), load_file(folder / "safety.safetensors")


@pytest.mark.parametrize("stage", STAGES)
def test_adapter_token_and_head_are_whole_and_equal_to_the_live_ones(
    finished: Callable[..., Any], stage: str
) -> None:
    run = finished(stage)
    adapter, safety = saved(run)
    for rank in (0, 1):
        live = run.weights(rank)
        adapters = {name: value for name, value in live.items() if ".lora_" in name}
        assert len(adapter) == len(adapters) > 0
        for name, value in adapter.items():
            assert value.numel() and torch.equal(value, adapters[name.replace(".weight", ".default.weight")])
        for name, value in safety.items():
            part, rest = name.split(".", 1)
            (theirs,) = (v for k, v in live.items() if k.endswith(f"safety_{part}.modules_to_save.default.{rest}"))
            assert value.numel() and torch.equal(value, theirs), name
    assert {"token.weight", "head.linear.weight", "head.mean"} <= safety.keys()


def test_zero_3_changed_the_trained_weights_and_no_other(finished: Callable[..., Any]) -> None:
    live, start = finished("zero3").weights(), finished("none", 1).weights()
    frozen = [name for name in live if ".lora_" not in name and "modules_to_save" not in name]
    assert frozen and all(torch.equal(live[name], start[name]) for name in frozen)
    moved = next(value for name, value in live.items() if f"{TOKEN_NAME}.modules_to_save" in name)
    before = next(value for name, value in live.items() if f"{TOKEN_NAME}.original_module" in name)
    assert not torch.equal(moved, before)


@pytest.mark.parametrize("stage", STAGES)
def test_one_process_loads_it(finished: Callable[..., Any], load_alone: Callable[..., Any], stage: str) -> None:
    run = finished(stage)
    found, live = load_alone(run.folder / "checkpoints" / "step-7"), run.weights()
    assert found.keys() == live.keys()
    assert all(torch.equal(value, live[name]) for name, value in found.items())
