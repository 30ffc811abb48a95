"""Growing and preallocated caches: the same texts, memory that follows the text, buffers that are used again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scripted import ScriptedRules
from test_equivalence import OFF, check
from worlds import PROMPTS, World

from safealign.decoding import Decoder, Run, slot
from safealign.decoding.slot import SLOT_COLUMNS, SlotCache


@pytest.fixture(autouse=True)
def no_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that short answers make the cache grow more than once."""
    monkeypatch.setattr(slot, "MARGIN", 1)


def cache_of(decoder: Decoder) -> SlotCache:
    engine: Any = decoder.engine
    found: SlotCache = engine._cache
    return found


def addresses(cache: SlotCache) -> set[int]:
    return {buffer.data_ptr() for pair in cache._buffers for buffer in pair}


def held(cache: SlotCache) -> int:
    """Columns of all rows that are allocated."""
    return cache._buffers[0][0].shape[0] * cache._buffers[0][0].shape[1] if cache._buffers else 0


def outcomes(decoder: Decoder, prompts: Any) -> list[Any]:
    rows = decoder.decode(prompts, range(len(prompts)))
    return [(row.tokens, row.intervened_at, row.finish, [entry.logit for entry in row.trace]) for row in rows]


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("dependency", ["low", "medium", "high"])
def test_both_equal_the_reference(world: World, with_options: Any, dependency: str, cache: str) -> None:
    check(world, with_options(dependency=dependency, cache=cache, r2=4, max_new_tokens=40), 4)


def test_both_give_the_same_while_rows_come_and_go(world: World, with_options: Any) -> None:
    found = []
    for cache in ("dynamic", "static"):
        decoder = world.decoder(with_options(cache=cache, max_new_tokens=30, temperature=1.0), OFF)
        decoder.rules = ScriptedRules.like(decoder.rules, 6, query_rate=0.2)
        run = Run(decoder, 3, 8, 4, eager=True)
        rows = [run.submit(prompt, 5) for prompt in world.prompts() * 2]
        while run.busy:
            run.step()
        found.append([(row.tokens, row.intervened_at) for row in rows])
    assert found[0] == found[1] and len({len(tokens) for tokens, _ in found[0]}) > 1


def test_a_growing_cache_holds_what_is_there_and_gives_it_back(world: World, with_options: Any) -> None:
    decoder = world.decoder(with_options(max_new_tokens=100_000), OFF, ())
    run = Run(decoder, 64, 4096, 100_000, eager=True)
    rows = [run.submit(world.prompts()[1], 0)]
    for step in range(60):
        run.step()
        longest = max(row.prompt.n_text + len(row.tokens) + SLOT_COLUMNS for row in rows)
        assert held(cache_of(decoder)) <= len(rows) * (1.5 * longest + 8), step
        if step == 20:
            rows += [run.submit(world.prompts()[1], 0)]
    for row in rows:
        run.cancel(row)
    assert held(cache_of(decoder)) == 0
    later = run.submit(world.prompts()[0], 0)
    run.step()
    assert later.tokens and held(cache_of(decoder)) < 2 * later.prompt.n_text


def test_growing_copies_a_constant_per_token(monkeypatch: pytest.MonkeyPatch) -> None:
    copied, pad = [], torch.nn.functional.pad

    def counted(buffer: torch.Tensor, *how: Any) -> torch.Tensor:
        copied.append(buffer.shape[1])
        return pad(buffer, *how)

    monkeypatch.setattr(torch.nn.functional, "pad", counted)
    cache = SlotCache(1)
    cache.admit(1)
    for column in range(3000):
        cache.aim([0], (torch.tensor([0]), torch.tensor([column])), column + 1)
        keys, values = cache.update(torch.full((1, 1, 1, 2), float(column)), torch.ones(1, 1, 1, 2), 0)
    assert keys[0, 0, :, 0].tolist() == list(range(3000)) and values.min() == 1
    assert sum(copied) / 2 < 3 * 3000


def test_buffers_are_used_again_and_it_changes_nothing(world: World, with_options: Any) -> None:
    options, prompts = with_options(cache="static", r2=4), world.prompts()
    decoder = world.decoder(options, OFF)
    first = outcomes(decoder, prompts[:1] * 3)
    cache, places = cache_of(decoder), addresses(cache_of(decoder))
    for chosen in (prompts[4:6], prompts[1:3], prompts[:1] * 3):  # as many rows or fewer, no longer texts
        found = outcomes(decoder, chosen)
        assert cache_of(decoder) is cache and addresses(cache) == places
        assert found == outcomes(world.decoder(options, OFF), chosen)
    assert found == first


def test_what_an_earlier_batch_left_is_never_read(world: World, with_options: Any) -> None:
    """Whatever finite numbers stand in the buffers."""
    decoder = world.decoder(with_options(cache="static", max_new_tokens=12), OFF)
    wanted = outcomes(decoder, world.prompts())
    for pair in cache_of(decoder)._buffers:
        for buffer in pair:
            buffer.uniform_(-1e4, 1e4)
    assert outcomes(decoder, world.prompts()) == wanted


def test_a_larger_batch_gets_larger_buffers(world: World, with_options: Any) -> None:
    decoder = world.decoder(with_options(cache="static", max_new_tokens=12), OFF)
    outcomes(decoder, world.prompts()[1:2])
    small = held(cache_of(decoder))
    outcomes(decoder, world.prompts())
    assert held(cache_of(decoder)) > len(PROMPTS) * small // 2


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_two_live_runs_share_no_buffer(world: World, with_options: Any, cache: str) -> None:
    options = with_options(cache=cache, max_new_tokens=16)
    wanted = outcomes(world.decoder(options, OFF, ()), world.prompts()[:1])
    decoders = [world.decoder(options, OFF, ()) for _ in range(2)]
    runs = [decoder.start(world.prompts()[:1], [0]) for decoder in decoders]
    while any(run.busy for run, _ in runs):
        for run, _ in runs:
            run.step()
            assert not addresses(cache_of(decoders[0])) & addresses(cache_of(decoders[1]))
    assert [rows[0].tokens for _, rows in runs] == [wanted[0][0]] * 2


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_run_whose_engine_was_given_to_another_says_so(world: World, with_options: Any, cache: str) -> None:
    decoder = world.decoder(with_options(cache=cache, max_new_tokens=16), OFF, ())
    wanted = decoder.decode(world.prompts()[:1], [0])[0].tokens
    stale, (old,) = decoder.start(world.prompts()[:1], [0])
    stale.step()
    run, (row,) = decoder.start(world.prompts()[:1], [0])
    with pytest.raises(RuntimeError, match="a new batch was opened"):
        stale.step()
    stale.cancel(old)
    while run.busy:
        run.step()
    assert row.tokens == wanted
