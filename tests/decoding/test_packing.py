"""Packed forwards: no row that holds nothing is computed, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comparing import OFF, check
from torch import nn
from worlds import World, make_world

from safealign.decoding import planning
from safealign.decoding.attention import PACKED
from safealign.decoding.packing import Packing
from safealign.modeling.tiny import ARCHITECTURES, tiny_model


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> list[Packing]:
    """Packs however little it spares; what was packed."""
    made: list[Packing] = []

    class Counted(Packing):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr(planning, "SAVED", 1)
    monkeypatch.setattr(planning, "Packing", Counted)
    return made


def test_there_and_back() -> None:
    packing = Packing(torch.tensor([0, 2, 3, 5]), 2, 3)
    states = torch.arange(8.0).reshape(1, 4, 2)
    grid = packing.unpack(states)
    assert grid.shape == (2, 3, 2) and grid[0, 1].tolist() == [0, 0]
    assert packing.gather(grid).equal(states)
    heads = torch.arange(16.0).reshape(1, 2, 4, 2)  # heads before rows
    assert packing.gather(packing.spread(heads).transpose(1, 2)).equal(heads.transpose(1, 2))


@pytest.mark.parametrize("fused", [False, True], ids=["separate", "fused"])
@pytest.mark.parametrize("dependency", ["low", "medium", "high"])
def test_it_equals_the_reference(
    world: World, with_options: Any, always: list[Packing], dependency: str, fused: bool
) -> None:
    check(world, with_options(dependency=dependency, fused=fused, r2=4, r1=12), 1)
    assert any(packing.size > 8 for packing in always)  # the prompts


@pytest.mark.parametrize("schedule", ["periodic", "annealing", "cascade"])
@pytest.mark.parametrize("gate", [True, False], ids=["open", "closed"])
def test_under_every_schedule(
    world: World, with_options: Any, always: list[Packing], schedule: str, gate: bool
) -> None:
    check(world, with_options(schedule=schedule, interval=3, floor=5, gate=gate), 5, window_rate=0.5)
    assert any(packing.size == 2 for packing in always) or schedule != "cascade"  # a step in which some have a window


@pytest.mark.parametrize("architecture", ["mistral", "qwen2", "qwen3", "gemma3", "phi", "phi3", "olmo2"])
def test_every_architecture_that_packs(architecture: str, with_options: Any, always: list[Packing]) -> None:
    check(make_world(2, architecture), with_options(max_new_tokens=16, r2=5), 7, window_rate=0.4)
    assert always


def test_no_other_architecture_packs(with_options: Any, always: list[Packing], monkeypatch: pytest.MonkeyPatch) -> None:
    tried = {tiny_model(name).config.model_type for name in ARCHITECTURES}
    assert tried >= PACKED
    world = make_world(2)
    monkeypatch.setattr(world.lm.config, "model_type", "new")
    check(world, with_options(max_new_tokens=16, r2=5), 7, window_rate=0.4)
    assert not always


def test_without_safety(world: World, with_options: Any, always: list[Packing]) -> None:
    options, prompts = with_options(safety=False), world.prompts()
    together = world.decoder(options, OFF, ()).decode(prompts, [0] * 6)
    assert len(always) == 1
    alone = [world.decoder(options, OFF, ()).decode([prompt], [0])[0] for prompt in prompts]
    assert [row.tokens for row in together] == [row.tokens for row in alone]


def test_the_model_computes_no_empty_row(world: World, with_options: Any) -> None:
    """A ragged batch's prompts: as many rows as there are tokens and requests to judge."""
    rows: list[int] = []
    block: nn.Module = world.parts.layers[0].mlp  # type: ignore[assignment]
    handle = block.register_forward_hook(lambda module, args, output: rows.append(args[0].shape[:-1].numel()))
    try:
        world.decoder(with_options(max_new_tokens=1), OFF).decode(world.prompts(), [0] * 6)
    finally:
        handle.remove()
    n_probed = rows[0] - sum(prompt.n_text for prompt in world.prompts())
    assert 6 <= n_probed <= 12
