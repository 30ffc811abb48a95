"""Cached, batched decoding equals full recompute of the layout: every rule, ragged rows, after an intervention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from comparing import OFF, check, compare
from scripted import ScriptedRules
from worlds import TRIGGER, World, make_world

from safealign.decoding import CalibratedThresholds, RowSettings


@pytest.mark.parametrize("fused", [False, True], ids=["separate", "fused"])
@pytest.mark.parametrize("dependency", ["low", "medium", "high"])
@pytest.mark.parametrize("seed", range(2))
def test_random_histories(world: World, with_options: Any, dependency: str, seed: int, fused: bool) -> None:
    options = with_options(dependency=dependency, fused=fused, r2=4, r1=12)
    check(world, options, seed)


@pytest.mark.slow
@pytest.mark.parametrize("dependency", ["low", "medium", "high"])
def test_two_hundred_random_histories(world: World, with_options: Any, dependency: str) -> None:
    """Every path of the machine, on every schedule, in ragged batches: 3 × 12 scripts of 6 rows are 216 histories."""
    schedules = ("every", "periodic", "annealing", "cascade")
    for seed in range(12):
        options = with_options(dependency=dependency, r2=3 + seed % 4, r1=5 + seed, tau=1 + seed % 3, interval=3)
        options = replace(options, schedule=schedules[seed % 4], floor=4, max_new_tokens=20)
        check(world, options, 100 + seed, query_rate=0.1, window_rate=0.3, confirm_rate=0.75)


@pytest.mark.parametrize("dependency", ["low", "medium", "high"])
def test_intervention_in_mid_answer(world: World, with_options: Any, dependency: str) -> None:
    options = with_options(dependency=dependency, max_new_tokens=30)
    rates = {"query_rate": 0.0, "prefix_rate": 0.0, "window_rate": 0.15, "confirm_rate": 0.9}
    rows = [row for seed in (11, 12) for row in check(world, options, seed, **rates)]
    assert sum((row.intervened_at or 0) > 1 for row in rows) >= 3


def test_a_trigger_longer_than_what_is_usually_remembered(world: World, with_options: Any) -> None:
    """Its tokens come after those that the intervention's refresh row judges."""
    options = with_options(trigger="Sorry no " * 10, max_new_tokens=100)
    rates = {"query_rate": 0.0, "prefix_rate": 0.0, "window_rate": 0.3, "confirm_rate": 1.0}
    rows = check(world, options, 11, **rates)
    assert len(world.renderer.trigger_ids(options.trigger, mid_answer=True)) > 64
    assert sum((row.intervened_at or 0) > 0 for row in rows) >= 1


@pytest.mark.parametrize("dependency", ["low", "medium"])
def test_refused_from_the_start(world: World, with_options: Any, dependency: str) -> None:
    options = with_options(dependency=dependency, r1=14, max_new_tokens=20)
    rows = check(world, options, 0, query_rate=1.0)
    assert all(row.intervened_at == 0 for row in rows)
    refreshed = [[e.span for e in row.trace if e.kind == "refresh"] for row in rows]
    assert all(spans and spans[-1] == (1, 14) for spans in refreshed)


@pytest.mark.parametrize("fused", [False, True], ids=["separate", "fused"])
@pytest.mark.parametrize("gate", [True, False], ids=["open", "closed"])
@pytest.mark.parametrize("schedule", ["first", "periodic", "annealing", "cascade"])
def test_schedules_and_gate(world: World, with_options: Any, schedule: str, gate: bool, fused: bool) -> None:
    options = with_options(schedule=schedule, interval=3, floor=5, gate=gate, fused=fused)
    check(world, options, 5, window_rate=0.5)


def test_the_token_head_itself_wakes_the_safety_token(world: World, with_options: Any) -> None:
    """No script: θ_token in the middle of what the token head says; windows come one token after a stir."""
    options, prompts = with_options(schedule="cascade", floor=50, theta_token=None), world.prompts()
    heard = world.decoder(options, OFF, (), record=True).decode(prompts, range(6))
    theta = sorted(logit for row in heard for logit in row.stirs)[-20]
    rows = world.decoder(replace(options, theta_token="calibrated"), replace(OFF, token=theta), ()).decode(
        prompts, range(6)
    )
    assert sum(len(row.woken) for row in rows) > 5
    for prompt, row in zip(prompts, rows, strict=True):
        compare(row, world.reference(prompt, replace(options, theta_token="calibrated"), replace(OFF, token=theta), ()))
        windows = {entry.position for entry in row.trace if entry.kind == "window"}
        assert {step for step in row.woken if step <= len(row.tokens)} <= windows


@pytest.mark.parametrize("tau", [1, 2, 3])
@pytest.mark.parametrize("dependency", ["low", "medium", "high"])
def test_ends_of_turn_and_pending_at_the_limit(world: World, with_options: Any, tau: int, dependency: str) -> None:
    options = with_options(dependency=dependency, tau=tau, max_new_tokens=14)
    plain = world.decoder(replace(options, safety=False), OFF, ()).decode(world.prompts(), [0] * 6)
    eos = {row.tokens[5] for row in plain}  # ids that do come up
    rows = check(world, options, 3, sorted(eos), query_rate=0.0, window_rate=0.4)
    assert {row.finish for row in rows} & {"stop", "refusal", "length"}


@pytest.mark.parametrize(
    ("architecture", "settings", "layers", "pool"),
    [
        ("qwen2", RowSettings("append"), (1.0,), ("row",)),
        ("llama", RowSettings("prepend"), (0.25, 0.75), ("row", "mean")),
        ("qwen2", RowSettings("prepend", True), (0.5, 1.0), ("mean", "last")),
        ("llama", RowSettings("append", True), (0.5,), ("row", "mean", "last")),
    ],
)
def test_architectures_placements_and_heads(
    architecture: str,
    settings: RowSettings,
    layers: tuple[float, ...],
    pool: tuple[str, ...],
    with_options: Any,
) -> None:
    world = make_world(3, architecture, layers, pool, settings)
    check(world, with_options(max_new_tokens=16, r2=5), 7, window_rate=0.4)


def test_with_the_head_itself_deciding(world: World, with_options: Any) -> None:
    """No script: thresholds in the middle of what the head says, so that rows go different ways."""
    options, prompts = with_options(r2=4), world.prompts()
    recorded = world.decoder(options, OFF, (), record=True).decode(prompts, range(6))
    statistics = sorted(row.recording().window_statistic for row in recorded)
    thresholds = CalibratedThresholds(query=1e9, window=sum(statistics[2:4]) / 2, prefix=1e9)
    rows = world.decoder(options, thresholds, ()).decode(prompts, range(6))
    assert 1 <= sum(row.intervened_at is not None for row in rows) <= 5
    for prompt, row in zip(prompts, rows, strict=True):
        compare(row, world.reference(prompt, options, thresholds, ()))


def test_the_gate_changes_the_text(world: World, with_options: Any) -> None:
    """Else the tests above would say nothing about the slot."""
    texts = [
        [row.tokens for row in world.decoder(with_options(gate=gate), OFF).decode(world.prompts(), range(6))]
        for gate in (True, False)
    ]
    assert texts[0] != texts[1]


def test_sampled_text_equals_the_reference(world: World, with_options: Any) -> None:
    from safealign.decoding.sampler import Draw, RowNoise, Sampler

    options = with_options(temperature=1.0, top_k=50, trigger=TRIGGER)
    prompts = world.prompts()
    decoder = world.decoder(options, OFF, ())
    decoder.rules = rules = ScriptedRules.like(decoder.rules, 2, window_rate=0.5)
    sampler, rows = Sampler(), decoder.decode(prompts, range(6))
    for seed, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        noise = RowNoise(seed)
        wanted = world.reference(
            prompt,
            options,
            OFF,
            (),
            rules=rules,
            choose=lambda x, t, n=noise: sampler.choose(x[None], [Draw(options, n, [0] * (t - 1))])[0],
        )
        compare(row, wanted)
