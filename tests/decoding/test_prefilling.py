"""Prompts fed in chunks: the logits, the verdicts and the texts are those of one forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comparing import OFF, check
from worlds import PROMPTS, World, make_world

from safealign.decoding import CachedEngine, Feed, Rules
from safealign.decoding.prefilling import chunks
from safealign.decoding.rows import EngineRow

TALKS = [*PROMPTS, [{"role": "user", "content": "Why so? " * 30}, {"role": "assistant", "content": "Since then " * 20}]]


def fed(world: World, chunk: int | None) -> Any:
    engine, prompts = CachedEngine(world.lm, world.parts, world.settings), world.prompts(TALKS)
    engine.open(len(prompts), 0, 0, chunk=chunk)
    rules, rows = Rules(r2=4), engine.admit(prompts)
    feeds = [Feed(row, row.prompt.rendered.input_ids, rules.opening(row.prompt.prefix), True) for row in rows]
    return engine.prefill(feeds)


@pytest.mark.parametrize("chunk", [1, 7, 32])
@pytest.mark.parametrize(
    ("architecture", "pool"), [("llama", ("row", "mean", "last")), ("qwen2", ("row",)), ("qwen2", ("mean", "last"))]
)
def test_logits_and_verdicts_are_those_of_one_forward(architecture: str, pool: tuple[str, ...], chunk: int) -> None:
    world = make_world(2, architecture, pool=pool)
    whole, pieces = fed(world, None), fed(world, chunk)
    scale = whole.logits.abs().max()
    assert (pieces.logits - whole.logits).abs().max() <= 1e-5 * scale
    assert [len(row) for row in pieces.verdicts] == [len(row) for row in whole.verdicts]
    for found, wanted in zip(pieces.verdicts, whole.verdicts, strict=True):
        p, q = torch.tensor(found).sigmoid(), torch.tensor(wanted).sigmoid()
        assert (p - q).abs().max() <= 1e-5


@pytest.mark.parametrize("chunk", [1, 5, 16])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_the_engine_equals_the_reference(world: World, with_options: Any, cache: str, chunk: int) -> None:
    check(world, with_options(prefill_chunk=chunk, cache=cache, r2=4, max_new_tokens=12), 1)


@pytest.mark.parametrize("chunk", [1, 3, 10, 64, 10_000])
def test_the_last_chunk_has_the_probes_and_all_who_see_their_verdict(world: World, chunk: int) -> None:
    for prompt in world.prompts(TALKS):
        tokens = prompt.rendered.input_ids
        *early, last = chunks(Feed(EngineRow(prompt, 0), tokens, Rules().opening(prompt.prefix), True), chunk)
        assert [*(t for feed in early for t in feed.tokens), *last.tokens] == list(tokens)
        assert last.probes and last.sees_new and not any(feed.probes or feed.sees_new for feed in early)
        assert all(len(feed.tokens) == chunk for feed in early)
        assert len(tokens) - len(last.tokens) <= prompt.rendered.query_end
        assert len(last.tokens) <= chunk + len(tokens) - prompt.rendered.query_end or not early


def test_no_forward_of_the_query_is_longer_than_a_chunk(world: World, options: Any) -> None:
    talk = [[{"role": "user", "content": "word " * 400}]]
    decoder, seen = world.decoder(options.override({"prefill_chunk": 64, "max_new_tokens": 1}), OFF), []
    hook = world.lm.model.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    decoder.decode(world.prompts(talk), [0])
    hook.remove()
    template = 16  # the end of the turn and the opening of the answer, and the safety row
    assert len(seen) > 6 and max(seen) <= 64 + template
