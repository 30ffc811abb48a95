"""Replaying a fixed answer gives the verdicts that decoding it gave, in one forward."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from worlds import World, make_world

from safealign.decoding import CalibratedThresholds, RowSettings
from safealign.decoding.replay import FixedAnswer, intervention_step, replay
from safealign.decoding.rules import Probe, ProbeKind
from safealign.decoding.trace import Recording

OFF = CalibratedThresholds()


def _worlds() -> list[Any]:
    return [
        pytest.param({}, id="append"),
        pytest.param({"architecture": "qwen2", "settings": RowSettings("prepend", True)}, id="prepend, sees query"),
        pytest.param({"layers": (1.0,), "pool": ("row",)}, id="last layer, row"),
    ]


@pytest.mark.parametrize("gate", [True, False])
def test_a_cascade_is_replayed_with_the_windows_it_asked_for(world: World, with_options: Any, gate: bool) -> None:
    """With the gate closed exactly; with it open the token head is read as if no window had written the slot."""
    options = with_options(schedule="cascade", floor=6, max_new_tokens=14, gate=gate)
    heard = world.decoder(replace(options, theta_token=None), OFF, record=True).decode(world.prompts(), range(6))
    thresholds = replace(OFF, token=sorted(logit for row in heard for logit in row.stirs)[-15])
    rows = world.decoder(options, thresholds, record=True).decode(world.prompts(), range(6))
    answers = [FixedAnswer(row.prompt, tuple(row.tokens)) for row in rows]
    found = replay(world.parts, answers, options.rules(thresholds), world.settings, gate=gate)
    assert sum(len(recording.windows) for recording in found) > 2 * len(rows)
    if not gate:
        for recording, row in zip(found, rows, strict=True):
            _same(recording, row.recording())


def _same(found: Recording, wanted: Recording) -> None:
    assert found.request == pytest.approx(wanted.request, abs=1e-4)
    assert found.prefix == pytest.approx(wanted.prefix, abs=1e-4)
    assert found.windows.keys() == wanted.windows.keys()
    for step, logits in wanted.windows.items():
        assert found.windows[step] == pytest.approx(logits, abs=1e-4)
    assert found.length == wanted.length


def _replayed(world: World, options: Any, rows: Any, **how: Any) -> list[Recording]:
    answers = [FixedAnswer(row.prompt, tuple(row.tokens)) for row in rows]
    return replay(world.parts, answers, options.rules(OFF), world.settings, gate=options.gate, **how)


@pytest.mark.parametrize("how", _worlds())
@pytest.mark.parametrize("schedule", ["every", "annealing", "periodic", "first"])
def test_replay_equals_recorded_decoding(how: dict[str, Any], schedule: str, with_options: Any) -> None:
    world = make_world(**how)
    options = with_options(schedule=schedule, interval=4, r2=5, max_new_tokens=14)
    rows = world.decoder(options, OFF, record=True).decode(world.prompts(), range(6))
    assert all(row.intervened_at is None for row in rows)
    for found, row in zip(_replayed(world, options, rows), rows, strict=True):
        _same(found, row.recording())


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("tau", [1, 3])
def test_replay_equals_the_reference(world: World, with_options: Any, gate: bool, tau: int) -> None:
    options = with_options(gate=gate, tau=tau, r2=4, max_new_tokens=8)
    for prompt in world.prompts()[2:5]:
        wanted = world.reference(prompt, options, OFF, rules=options.rules(OFF, record=True))
        answer = FixedAnswer(prompt, tuple(wanted.tokens))
        (found,) = replay(world.parts, [answer], options.rules(OFF), world.settings, gate=gate)
        by_kind = [(probe, step, logit) for step, probe, logit in wanted.verdicts]
        assert found.request == pytest.approx(by_kind[0][2], abs=1e-4)
        for step, logits in found.windows.items():
            expected = [x for probe, at, x in by_kind if _belongs(probe, at, step)]
            assert logits == pytest.approx(expected, abs=1e-4)
            assert len(logits) == min(tau, len(wanted.tokens) - step + 1)
        assert sorted(found.windows) == list(range(1, len(wanted.tokens) + 1))


def _belongs(probe: Probe, at: int, step: int) -> bool:
    """Whether this verdict is one of the windows of scheduled step `step`."""
    if probe.kind is ProbeKind.WINDOW:
        return at == step
    return probe.kind is ProbeKind.CONFIRM and probe.alarm == step


def test_an_answer_that_ended_is_looked_at_when_it_ends(world: World, with_options: Any) -> None:
    options = with_options(schedule="annealing", max_new_tokens=12)
    eos = sorted(world.renderer.eos_ids)
    rows = world.decoder(options, OFF, record=True).decode(world.prompts(), range(6))
    ended = [FixedAnswer(row.prompt, (*row.tokens[:5], eos[0])) for row in rows]
    for recording in replay(world.parts, ended, options.rules(OFF), world.settings):
        assert recording.length == 6
        assert sorted(recording.windows) == [1, 3, 6]


def test_batches_change_nothing(world: World, options: Any) -> None:
    rows = world.decoder(options, OFF, record=True).decode(world.prompts(), range(6))
    done: list[int] = []
    one_by_one = _replayed(world, options, rows, batch_size=1)
    together = _replayed(world, options, rows, batch_size=4, progress=done.append)
    assert done == [4, 2]
    for found, wanted in zip(together, one_by_one, strict=True):
        _same(found, wanted)


def test_thresholds_change_no_recording(world: World, options: Any) -> None:
    """Replay records as calibration does: what the rules would have done is not done."""
    rows = world.decoder(options, OFF, record=True).decode(world.prompts()[:2], range(2))
    answers = [FixedAnswer(row.prompt, tuple(row.tokens)) for row in rows]
    eager = replace(options.rules(OFF), theta_query=-99.0, theta_window=-99.0, theta_prefix=-99.0)
    for found, row in zip(replay(world.parts, answers, eager, world.settings), rows, strict=True):
        _same(found, row.recording())


def test_no_answer_yet_has_the_requests_verdict_and_the_prefixs(world: World, options: Any) -> None:
    prompt = world.prompts()[4]
    (found,) = replay(world.parts, [FixedAnswer(prompt, ())], options.rules(OFF), world.settings)
    assert found.windows == {}
    assert len(found.prefix) >= 1


def _recording(windows: dict[int, tuple[float, ...]], length: int = 20) -> Recording:
    return Recording(0.0, (), windows, length)


def test_an_answer_is_stopped_at_the_first_step_all_of_whose_windows_reach_the_threshold() -> None:
    recording = _recording({1: (2.0, 2.0, 0.5), 3: (1.0, 3.0, 1.0), 7: (9.0, 9.0, 9.0)})
    assert intervention_step(recording, 1.0, 3) == 5
    assert intervention_step(recording, 1.5, 3) == 9
    assert intervention_step(recording, 10.0, 3) is None
    assert intervention_step(recording, None, 3) is None


def test_an_alarm_at_the_very_end_stops_there() -> None:
    assert intervention_step(_recording({20: (2.0,)}), 1.0, 3) == 20
    assert intervention_step(_recording({19: (2.0, 2.0)}), 1.0, 3) == 20
