"""Gate closed, verdicts in forwards of their own: until the rules step in, every logit is the bare model's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from worlds import PROMPTS, World, make_world

from safealign.decoding import CalibratedThresholds, DecodedRow, Decoder, Prompt

NEVER = CalibratedThresholds(query=1e9, window=1e9, prefix=1e9, token=0.0)
LONG = [{"role": "user", "content": "Tell a tale"}, {"role": "assistant", "content": "and then it rained " * 40}]


@contextmanager
def text_logits(world: World) -> Iterator[list[torch.Tensor]]:
    """Every output of the model's own output layer while open."""
    seen: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: torch.Tensor) -> None:
        seen.append(output.detach().clone())

    handle = world.lm.get_output_embeddings().register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def decode(
    world: World, options: Any, prompts: Sequence[Prompt], thresholds: Any = NEVER
) -> tuple[list[DecodedRow], list[torch.Tensor]]:
    decoder: Decoder = world.decoder(options, thresholds, ())
    with text_logits(world) as seen:
        rows = decoder.decode(prompts, range(len(prompts)))
    return rows, seen


def same(bare: Sequence[torch.Tensor], ours: Sequence[torch.Tensor]) -> bool:
    """Our newest token is fed once more, for the windows that end with it."""
    return len(bare) <= len(ours) and all(torch.equal(a, b) for a, b in zip(bare, ours, strict=False))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3"])
@pytest.mark.parametrize("schedule", ["every", "cascade"])
def test_separate_verdicts_leave_every_logit_as_it_is(architecture: str, schedule: str, with_options: Any) -> None:
    world = make_world(3, architecture)
    options = with_options(schedule=schedule, floor=5, gate=False, fused=False, max_new_tokens=12)
    for prompt in world.prompts((PROMPTS[2], LONG)):
        (bare,), wanted = decode(world, replace(options, safety=False), [prompt])
        (row,), found = decode(world, options, [prompt])
        assert row.trace and row.intervened_at is None
        assert same(wanted, found) and row.tokens == bare.tokens


def test_so_do_they_in_a_batch_of_the_same_rows_and_when_tokens_are_drawn(world: World, with_options: Any) -> None:
    options = with_options(schedule="every", gate=False, fused=False, temperature=1.0, max_new_tokens=12)
    bare, wanted = decode(world, replace(options, safety=False), world.prompts())
    rows, found = decode(world, options, world.prompts())
    assert same(wanted, found)
    assert [row.tokens for row in rows] == [row.tokens for row in bare]


def test_fused_ones_move_them_by_rounding_alone(world: World, with_options: Any) -> None:
    options = with_options(schedule="every", gate=False, max_new_tokens=12)
    bare, wanted = decode(world, replace(options, safety=False), world.prompts())
    rows, found = decode(world, options, world.prompts())
    for a, b in zip(wanted, found, strict=False):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert [row.tokens for row in rows] == [row.tokens for row in bare]


@pytest.mark.parametrize("chunk", [2048, 7])
def test_verdicts_on_the_prompt_are_the_same_in_either_forward(chunk: int, world: World, with_options: Any) -> None:
    options = with_options(schedule="every", gate=False, prefill_chunk=chunk, max_new_tokens=6)
    prompts = world.prompts((*PROMPTS, LONG))
    fused, _ = decode(world, options, prompts)
    apart, _ = decode(world, replace(options, fused=False), prompts)
    for one, other in zip(fused, apart, strict=True):
        assert [(e.position, e.kind, e.span) for e in one.trace] == [(e.position, e.kind, e.span) for e in other.trace]
        assert [e.logit for e in one.trace] == pytest.approx([e.logit for e in other.trace], abs=2e-4)
        assert {e.cost.forwards for e in one.trace} == {0} and {e.cost.forwards for e in other.trace} == {1}


def test_up_to_an_intervention_the_text_is_the_bare_models(world: World, with_options: Any) -> None:
    options = with_options(schedule="every", gate=False, fused=False, tau=1, max_new_tokens=30)
    for prompt in world.prompts(PROMPTS[:3]):
        (bare,), wanted = decode(world, replace(options, safety=False), [prompt])
        (quiet,), _ = decode(world, options, [prompt])
        windows = sorted(e.logit for e in quiet.trace if e.kind == "window")
        (row,), found = decode(world, options, [prompt], replace(NEVER, window=windows[len(windows) // 2]))
        at = row.intervened_at
        assert at is not None and row.tokens[:at] == bare.tokens[:at]
        assert same(wanted[: at + 1], found)
        assert row.tokens != bare.tokens


def test_an_open_gate_needs_both_in_one_forward(world: World) -> None:
    from safealign.decoding import CachedEngine

    engine = CachedEngine(world.lm, world.parts, world.settings)
    with pytest.raises(ValueError, match="gate open"):
        engine.prefill([], apart=True)
