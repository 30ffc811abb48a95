"""What an architecture must do to be called supported, each on a tiny random instance of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from comparing import OFF, check
from small_runs import SmallRun, answers_of, one_step
from worlds import TRIGGER, World, make_world

from safealign.decoding import DecodingOptions
from safealign.layout import build_layout, refresh_row, request_row, window_row
from safealign.layout.collate import collate_layouts
from safealign.modeling.features import plan_for
from safealign.modeling.loading import TINY_NAME, load_base

ANSWERED = [
    {"role": "user", "content": "Tell me about the ocean and the weather in the north"},
    {"role": "assistant", "content": "Well, it is deep and cold and wide, and the wind there never rests."},
]


def attention(name: str) -> None:
    """With the gate closed the logits are the model's own (its windows, soft caps and scales included)."""
    world = _world(name)
    for implementation in ("eager", "sdpa") if world.lm._supports_sdpa else ("eager",):
        world.lm.set_attn_implementation(implementation)
        _is_itself(world)


def _is_itself(world: World) -> None:
    text = world.renderer.render(ANSWERED)
    start = text.response.start
    rows = [request_row(text), window_row(text, start, start + 6), refresh_row(text, 4)]
    ids = torch.tensor([text.input_ids])
    with torch.no_grad():
        wanted = world.lm(input_ids=ids, use_cache=False).logits
        found = []
        for gate in (False, True):
            with world.parts.armed(plan_for(collate_layouts([build_layout(text, rows, gate=gate)]))):
                found.append(world.lm(input_ids=ids, use_cache=False).logits)
    torch.testing.assert_close(found[0], wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1][:, : text.query_end], wanted[:, : text.query_end], atol=1e-4, rtol=1e-4)
    # Far behind a window's reach of the request as well: the slot is exempt.
    assert (found[1] - wanted)[0, text.query_end :].abs().amax(dim=-1).min() > 1e-4
    window = world.parts.masks.window
    if window is not None:
        assert len(text.input_ids) > 2 * window


def training(name: str) -> None:
    """One step of our trainer moves the adapter, the token and the head, and the loss is finite."""
    run = _run(name)
    assert 0.0 < run.loss < 100.0
    assert run.moved("lora_") and run.moved("safety_token") and run.moved("safety_head")


def decoding(name: str) -> None:
    """The batched engine equals full recompute under the rules, and `hf.generate` without them."""
    world = _world(name)
    options = DecodingOptions(schedule="every", max_new_tokens=24, trigger=TRIGGER, refusal="No.", r2=4, r1=12)
    in_chunks = replace(options, prefill_chunk=5)
    rows = check(world, options, 0, query_rate=0.2, window_rate=0.2)
    rows += check(world, in_chunks, 11, query_rate=0.2, window_rate=0.2)
    assert any((row.intervened_at or 0) > 0 for row in rows)
    bare = DecodingOptions(safety=False, max_new_tokens=24)
    for prompt, row in zip(world.prompts(), world.decoder(bare, OFF, ()).decode(world.prompts(), [0] * 6), strict=True):
        ids = torch.tensor([prompt.rendered.input_ids])
        how = {"do_sample": False, "max_new_tokens": 24, "eos_token_id": None, "pad_token_id": 0}
        found = world.lm.generate(ids, attention_mask=torch.ones_like(ids), **how)
        assert found[0, ids.shape[1] :].tolist() == row.tokens


def restoring(name: str) -> None:
    """Exported merged and as an adapter, and loaded again: the same p and the same greedy answers."""
    run = _run(name)
    p, answers = answers_of(run.live())
    with tempfile.TemporaryDirectory() as folder:
        for merge in (True, False):
            again, said = answers_of(run.reloaded(Path(folder) / str(merge), merge, f"{TINY_NAME}:{name}:0"))
            assert again == pytest.approx(p, abs=1e-4)
            assert said == answers


CHECKS: dict[str, Callable[[str], None]] = {
    "its own attention": attention,
    "trains": training,
    "decodes": decoding,
    "restores": restoring,
}


@cache
def _world(name: str) -> World:
    return make_world(3, name)


@cache
def _run(name: str) -> SmallRun:
    model, tokenizer = load_base(f"{TINY_NAME}:{name}:0")
    with tempfile.TemporaryDirectory() as folder:
        return one_step(model, tokenizer, Path(folder))
