"""The batched decoder: rows do not depend on their neighbours, the bare model is the bare model, records are whole."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scripted import ScriptedRules
from worlds import World

from safealign.decoding import CachedEngine, CalibratedThresholds, DecodedRow, DecodingOptions, Prompt, Run
from safealign.decoding.sampler import Draw, RowNoise, Sampler
from safealign.decoding.slot import SlotCache
from safealign.errors import ConfigError
from safealign.evaluation.metrics.calibration import candidate_windows, max_min_statistic

OFF = CalibratedThresholds()


def outcome(row: DecodedRow) -> tuple[Any, ...]:
    return row.tokens, row.intervened_at, row.finish, [(e.position, e.kind, e.state) for e in row.trace]


@pytest.mark.parametrize("fused", [False, True], ids=["separate", "fused"])
@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def test_batch_equals_one_by_one(world: World, with_options: Any, temperature: float, fused: bool) -> None:
    options = with_options(temperature=temperature, top_p=0.9, fused=fused, r2=4)
    prompts = world.prompts()
    decoder = world.decoder(options, OFF)
    decoder.rules = ScriptedRules.like(decoder.rules, 8, query_rate=0.3)
    together = [outcome(row) for row in decoder.decode(prompts, range(6))]
    assert together == [outcome(decoder.decode([p], [i])[0]) for i, p in enumerate(prompts)]
    assert together == [outcome(row) for row in decoder.decode(prompts, range(6), batch_size=2)]


def test_waiting_prompts_take_the_places_of_finished_ones(world: World, with_options: Any) -> None:
    options = with_options(max_new_tokens=12)
    prompts = world.prompts() * 4
    plain = world.decoder(replace(options, safety=False), OFF, ()).decode(world.prompts(), range(6))
    eos = sorted({row.tokens[3] for row in plain[:3]})
    decoder = world.decoder(options, OFF, eos)
    run, rows = decoder.start(prompts, range(24), batch_size=5)
    most = 0
    while run.busy:
        most = max(most, len(run.live))
        run.step()
    assert most == 5 and run.finished == 24
    assert [row.tokens for row in rows] == [row.tokens for row in decoder.decode(prompts, range(24))]


def test_sampling_depends_on_the_seed_alone(world: World, with_options: Any) -> None:
    options = with_options(temperature=1.0, safety=False)
    prompt = world.prompts()[0]
    decoder = world.decoder(options, OFF)
    texts = [row.tokens for row in decoder.decode([prompt] * 4, [1, 2, 1, 3])]
    assert texts[0] == texts[2] and len({tuple(text) for text in texts}) == 3


@pytest.mark.parametrize("index", range(6))
def test_the_bare_model_is_hf_generate(world: World, with_options: Any, index: int) -> None:
    prompt = world.prompts()[index]
    row = world.decoder(with_options(safety=False), OFF).decode([prompt], [0])[0]
    ids = torch.tensor([prompt.rendered.input_ids])
    wanted = world.lm.generate(ids, max_new_tokens=24, do_sample=False, eos_token_id=sorted(world.renderer.eos_ids))
    assert row.tokens == wanted[0, ids.shape[1] :].tolist()
    assert row.trace == []


def test_gate_closed_and_thresholds_off_is_the_bare_model_too(world: World, with_options: Any) -> None:
    bare = world.decoder(with_options(safety=False), OFF).decode(world.prompts(), range(6))
    probed = world.decoder(with_options(gate=False), OFF).decode(world.prompts(), range(6))
    assert [row.tokens for row in bare] == [row.tokens for row in probed]
    assert all(row.trace for row in probed)


def test_min_new_tokens_puts_the_end_off(world: World, with_options: Any) -> None:
    prompts = world.prompts()
    free = world.decoder(with_options(safety=False), OFF, ()).decode(prompts, range(6))
    eos = sorted({row.tokens[2] for row in free})
    early = world.decoder(with_options(safety=False), OFF, eos).decode(prompts, range(6))
    late = world.decoder(with_options(safety=False, min_new_tokens=10), OFF, eos).decode(prompts, range(6))
    assert min(len(row.tokens) for row in early) <= 3
    assert all(len(row.tokens) > 10 for row in late)


def test_nothing_shown_is_ever_withdrawn(world: World, with_options: Any) -> None:
    decoder = world.decoder(with_options(max_new_tokens=30), OFF)
    decoder.rules = ScriptedRules.like(decoder.rules, 4, query_rate=0.0, window_rate=0.3, confirm_rate=0.8)
    run, rows = decoder.start(world.prompts(), range(6))
    seen: list[list[int]] = [[] for _ in rows]
    withdrawn = 0
    while run.busy:
        before = [len(row.tokens) for row in rows]
        run.step()
        for i, row in enumerate(rows):
            assert row.tokens[: len(seen[i])] == seen[i]
            seen[i] = row.tokens[: row.shown]
            withdrawn += row.intervened_at is not None and row.intervened_at < before[i] and len(seen[i]) > 0
    assert withdrawn and seen == [row.tokens for row in rows]


@pytest.mark.parametrize("dependency", ["medium", "high"])
def test_an_end_of_turn_is_not_shown_while_a_refusal_may_take_its_place(
    world: World, with_options: Any, dependency: str
) -> None:
    """An alarm raised by the end itself keeps all but the end: the refusal's first token stands where it stood."""
    plain = world.decoder(with_options(safety=False), OFF, ()).decode(world.prompts()[:1], [0])[0]
    decoder = world.decoder(with_options(dependency=dependency), OFF, [plain.tokens[0]])
    decoder.rules = ScriptedRules.like(decoder.rules, 0, query_rate=0.0, window_rate=1.0, confirm_rate=1.0)
    run, (row,) = decoder.start(world.prompts()[:1], [0])
    run.step()
    assert row.tokens == plain.tokens[:1] and row.shown == 0
    run.step()
    assert row.intervened_at == 0 and row.tokens[: row.shown] != plain.tokens[:1]


def test_a_cancelled_answer_keeps_only_what_was_shown(world: World, with_options: Any) -> None:
    decoder = world.decoder(with_options(), OFF, ())
    decoder.rules = ScriptedRules.like(decoder.rules, 0, query_rate=0.0, window_rate=1.0, confirm_rate=1.0)
    run, (row,) = decoder.start(world.prompts()[:1], [0])
    for _ in range(3):
        run.step()
    assert (row.state.state, row.shown, len(row.tokens)) == ("pending", 1, 3)
    run.cancel(row)
    assert row.finish == "cancelled" and len(row.tokens) == row.shown == 1


def test_the_first_token_is_shown_before_it_is_fed(world: World, with_options: Any) -> None:
    """Its own verdict can only withdraw what comes after it, so nobody waits for that."""
    run, rows = world.decoder(with_options(), OFF, ()).start(world.prompts()[:2], [0, 1])
    run.step()
    assert [row.shown for row in rows] == [1, 1]
    assert all(entry.kind in ("request", "prefix") for row in rows for entry in row.trace)


def test_rows_come_and_go_while_others_are_decoded(world: World, with_options: Any) -> None:
    """Submitted late, cancelled early, with options of their own: every text is what it is alone."""
    options, prompts = with_options(safety=True, schedule="periodic", interval=3), world.prompts()
    decoder = world.decoder(options, OFF, ())
    alone = [decoder.decode([prompt], [7])[0].tokens for prompt in prompts]
    run = Run(world.decoder(options, OFF, ()), 3, 8, 4, eager=True)
    rows = [run.submit(prompt, 7) for prompt in prompts[:2]]
    for _ in range(4):
        run.step()
    rows += [run.submit(prompt, 7, replace(options, max_new_tokens=5 + i)) for i, prompt in enumerate(prompts[2:])]
    run.step()
    run.cancel(rows[0])
    run.cancel(rows[5])  # still waiting
    while run.busy:
        run.step()
    assert [row.finish for row in rows] == ["cancelled", *["length"] * 4, "cancelled"]
    assert all(row.tokens == text[: len(row.tokens)] for row, text in zip(rows, alone, strict=True))
    assert [len(row.tokens) for row in rows] == [5, 24, 5, 6, 7, 0] and run.finished == 6


def test_rows_of_one_batch_share_their_rules(world: World, with_options: Any) -> None:
    run = Run(world.decoder(with_options(), OFF), 1, 8, 8)
    with pytest.raises(ConfigError, match="share their rules"):
        run.submit(world.prompts()[0], 0, with_options(tau=1))
    with pytest.raises(ConfigError, match="need a tokenizer"):
        run.submit(world.prompts()[0], 0, with_options(stop=("x",)))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_prompt_that_cannot_be_fed_leaves_the_others_as_they_are(
    world: World, with_options: Any, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the engine raises, while keys are written included; and the run goes on after it."""
    options = with_options(cache=cache, max_new_tokens=12, schedule="every", r2=4)
    decoder = world.decoder(options, OFF)
    decoder.rules = ScriptedRules.like(decoder.rules, 8, query_rate=0.5)
    prompts = world.prompts()
    alone = [outcome(decoder.decode([prompt], [0])[0]) for prompt in prompts]
    run, engine = Run(decoder, 6, 8, 8, eager=True), decoder.engine
    assert isinstance(engine, CachedEngine)
    rows = [run.submit(prompt, 0) for prompt in prompts[:2]]
    run.step()
    run.step()
    write, written = SlotCache._write, []

    def faulty(cache: SlotCache, buffer: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        if any(engine.rows[i].prompt is prompts[2] for i in cache._index.tolist()):
            written.append(states)
            if len(written) % 3 == 0:  # in the second layer
                raise torch.OutOfMemoryError("no memory")
        return write(cache, buffer, states)

    monkeypatch.setattr(SlotCache, "_write", faulty)
    rows += [run.submit(prompt, 0) for prompt in prompts[3:5]]
    failing, last = run.submit(prompts[2], 0), run.submit(prompts[5], 0)
    rows.append(last)
    with pytest.raises(torch.OutOfMemoryError):
        run.step()
    assert failing.finish == "error" and failing.tokens == [] and len(written) == 6
    while run.busy:
        run.step()
    assert [outcome(row) for row in rows] == [alone[i] for i in (0, 1, 3, 4, 5)]
    assert run.finished == 6


@pytest.mark.slow
def test_ten_thousand_tokens_do_not_grow_beyond_the_cache(world: World, with_options: Any) -> None:
    """What is kept of a long answer besides its keys and values has a bound."""
    options = with_options(max_new_tokens=10_000, schedule="periodic", interval=20)
    decoder = world.decoder(options, OFF, ())
    run, rows = decoder.start(world.prompts()[1:2], [0])
    engine: Any = decoder.engine
    sizes = []
    while run.busy:
        run.step()
        if len(rows[0].tokens) in (200, 9_990):
            sizes.append(sum(t.numel() for t in vars(engine._memory).values() if isinstance(t, torch.Tensor)))
    assert len(rows[0].tokens) == 10_000 and len(sizes) == 2 and sizes[0] == sizes[1]


def test_what_is_remembered_follows_what_is_read(world: World, with_options: Any) -> None:
    """A confirmation reaches past the alarm by τ - 1 at most, whatever r3 says; windows may be longer than usual."""
    for changes, ring in (({"r3": 10**9}, 64), ({"r2": 200, "r3": 10**9}, 203)):
        decoder = world.decoder(with_options(max_new_tokens=3, **changes), OFF)
        decoder.decode(world.prompts()[:1], [0])
        engine: Any = decoder.engine
        assert engine._memory.ring == ring


@pytest.mark.parametrize("schedule", ["every", "periodic", "annealing"])
def test_a_recording_holds_the_windows_of_the_statistic(world: World, with_options: Any, schedule: str) -> None:
    options = with_options(schedule=schedule, interval=4, r2=5, tau=3)
    decoder = world.decoder(options, OFF, record=True)
    for prompt, row in zip(world.prompts(), decoder.decode(world.prompts(), range(6)), strict=True):
        recording, length = row.recording(), len(row.tokens)
        steps = [step for step in range(1, length + 1) if decoder.rules.schedule.is_scheduled(step)]
        wanted = candidate_windows(steps, length, tau=3, r2=5, r3=10, prefix=prompt.prefix)
        assert {step: len(logits) for step, logits in recording.windows.items()} == {
            step: len(windows) for step, windows in wanted.items()
        }
        assert recording.window_statistic == max_min_statistic(recording.windows, 3, length)
        assert (recording.prefix_statistic == -math.inf) == (prompt.prefix == 0)


def test_an_intervention_implies_that_the_statistic_reached_theta(world: World, with_options: Any) -> None:
    options = with_options(r2=4, gate=False)
    recorded = world.decoder(options, OFF, record=True).decode(world.prompts(), range(6))
    statistics = [row.recording().window_statistic for row in recorded]
    for theta in sorted(statistics):
        rows = world.decoder(options, CalibratedThresholds(window=theta)).decode(world.prompts(), range(6))
        for row, statistic in zip(rows, statistics, strict=True):
            assert row.intervened_at is None or statistic >= theta


def test_p0_does_not_depend_on_the_answer_given(world: World, with_options: Any) -> None:
    request = {"role": "user", "content": "Say it"}
    prefilled = [[request, {"role": "assistant", "content": text}] for text in ("Yes", "No, never", "A long one here")]
    prompts = world.prompts([[request], *prefilled])
    rows = world.decoder(with_options(max_new_tokens=2), OFF).decode(prompts, range(4))
    logits = [row.request_logit for row in rows]
    assert logits == pytest.approx([logits[0]] * 4, abs=1e-5)


def test_the_trigger_may_pass_the_token_limit_but_nothing_follows_it(world: World, with_options: Any) -> None:
    decoder = world.decoder(with_options(max_new_tokens=3), OFF)
    decoder.rules = ScriptedRules.like(decoder.rules, 0, query_rate=1.0)
    row = decoder.decode(world.prompts()[:1], [0])[0]
    assert tuple(row.tokens) == decoder.policy.trigger_ids(mid_answer=False)
    assert row.finish == "length"


def test_cost_counts_forwards_of_their_own(world: World, with_options: Any) -> None:
    for fused, forwards in ((True, 0), (False, 1)):
        row = world.decoder(with_options(fused=fused), OFF).decode(world.prompts()[:1], [0])[0]
        assert row.trace[0].cost.forwards == 0
        assert {entry.cost.forwards for entry in row.trace[1:]} == {forwards}


def test_a_long_answer_outgrows_the_cache_and_goes_on(world: World, with_options: Any) -> None:
    options = with_options(max_new_tokens=40, cache="static")
    whole = world.decoder(options, OFF, ()).decode(world.prompts()[:2], [0, 0])
    decoder = world.decoder(options, OFF, ())  # one of its own: the first one's cache would be large enough
    original = decoder.engine.open
    decoder.engine.open = lambda n, longest, room, **more: original(n, longest, 0, **more)  # type: ignore[method-assign]
    assert [row.tokens for row in decoder.decode(world.prompts()[:2], [0, 0])] == [row.tokens for row in whole]


# ---- the sampler --------------------------------------------------------------------------------------------


def test_noise_belongs_to_the_step() -> None:
    late = RowNoise(5).at(100)
    noise = RowNoise(5)
    assert [noise.at(step) for step in (1, 100, 1)] == [RowNoise(5).at(1), late, RowNoise(5).at(1)]


def test_sampler_follows_the_distribution() -> None:
    probabilities = torch.tensor([0.1, 0.0, 0.6, 0.3])
    logits = probabilities.log().repeat(4000, 1)
    options = DecodingOptions(temperature=1.0)
    drawn = Sampler().choose(logits, [Draw(options, RowNoise(i), ()) for i in range(4000)])
    shares = torch.bincount(torch.tensor(drawn), minlength=4) / 4000
    assert shares[1] == 0 and torch.allclose(shares, probabilities, atol=0.03)


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"top_k": 1}, {2}),
        ({"top_k": 2}, {2, 3}),
        ({"top_p": 0.5}, {2}),
        ({"top_p": 0.8}, {2, 3}),
        ({"min_p": 0.4}, {2, 3}),
        ({"min_p": 0.1}, {0, 2, 3}),
    ],
)
def test_sampler_truncates(changes: dict[str, Any], allowed: set[int]) -> None:
    logits = torch.tensor([0.1, 0.02, 0.58, 0.3]).log().repeat(500, 1)
    options = DecodingOptions(temperature=1.0, **changes)
    assert set(Sampler().choose(logits, [Draw(options, RowNoise(i), ()) for i in range(500)])) == allowed


def test_each_row_is_drawn_by_its_own_options() -> None:
    """A mixed batch gives what each row gives alone; repetitions are penalised over prompt and answer."""
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    options = [
        DecodingOptions(),
        DecodingOptions(temperature=0.7, top_k=5),
        DecodingOptions(repetition_penalty=50.0),
        DecodingOptions(temperature=1.3, min_p=0.2, repetition_penalty=1.2),
        DecodingOptions(min_new_tokens=4),
    ]
    ids = [int(row.argmax()) for row in logits]
    draws = [Draw(o, RowNoise(i), [ids[i]], [1, 2]) for i, o in enumerate(options)]
    sampler = Sampler(eos_ids=[ids[4]])
    together = sampler.choose(logits, draws)
    assert together == [sampler.choose(logits[i : i + 1], draws[i : i + 1])[0] for i in range(5)]
    assert together[0] == ids[0] and together[2] != ids[2] and together[4] != ids[4]


def test_prompt_counts_a_prefix_backwards(world: World) -> None:
    prompt: Prompt = world.prompts()[4]
    assert prompt.span(1 - prompt.prefix, 0) == prompt.rendered.response
