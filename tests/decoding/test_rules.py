"""The state machine: every transition, as tables of verdicts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from safealign.decoding.rules import (
    Action,
    ActionKind,
    Dependency,
    Probe,
    ProbeKind,
    RowState,
    Rules,
    State,
    Transition,
)
from safealign.decoding.schedule import Every, First, Periodic

HIT, MISS = 1.0, -1.0
RULES = Rules(schedule=Every(), theta_query=0.0, theta_window=0.0, theta_prefix=0.0)


def run(rules: Rules, script: list[tuple[float, float]], prefix: int = 0, **last: bool) -> list[Transition]:
    """Steps through `script`: for each step the logits of the window and of the confirmation (where asked)."""
    row, moves = RowState(), []
    for step, (window, confirm) in enumerate(script, 1):
        flags = last if step == len(script) else {}
        probes = rules.probes(row, step, prefix=prefix, final=bool(flags))
        verdicts = [(probe, confirm if probe.kind is ProbeKind.CONFIRM else window) for probe in probes]
        moves.append(rules.step(row, step, verdicts, **flags))
        row = moves[-1].row
    return moves


def states(moves: list[Transition]) -> list[str]:
    return [f"{move.row.state}{move.row.count or ''}" for move in moves]


# ---- the request --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dependency", "query", "state", "action"),
    [
        ("low", MISS, State.BENIGN, Action()),
        ("low", HIT, State.REFUSING, Action()),
        ("medium", MISS, State.BENIGN, Action()),
        ("medium", HIT, State.REFUSING, Action(ActionKind.REFUSE, 0)),
        ("high", MISS, State.BENIGN, Action()),
        ("high", HIT, State.REFUSING, Action(ActionKind.STOP, 0)),
    ],
)
def test_request(dependency: str, query: float, state: State, action: Action) -> None:
    move = replace(RULES, dependency=Dependency(dependency)).open([query])
    assert (move.row.state, move.action) == (state, action)
    assert not move.row.frozen


def test_threshold_is_reached_at_equality_and_null_disables() -> None:
    assert RULES.open([0.0]).row.state is State.REFUSING
    assert replace(RULES, theta_query=None).open([99.0]).row.state is State.BENIGN
    assert replace(RULES, theta_query=40.0).open([39.99]).row.state is State.BENIGN  # logits, not saturated p
    assert replace(RULES, theta_query=40.0).open([40.01]).row.state is State.REFUSING


@pytest.mark.parametrize(
    ("prefix", "spans"),
    [
        (0, []),
        (1, [(0, 0)]),
        (10, [(-9, 0)]),
        (13, [(-12, -3), (-9, 0)]),
        (25, [(-24, -15), (-14, -5), (-9, 0)]),
    ],
)
def test_prefix_windows_are_probes_every_r2_tokens_and_at_g_0(prefix: int, spans: list[tuple[int, int]]) -> None:
    request, *windows = RULES.opening(prefix)
    assert request == Probe(ProbeKind.REQUEST, writes=True)
    assert [(probe.start, probe.end) for probe in windows] == spans
    assert not any(probe.writes for probe in windows)


def test_any_prefix_window_refuses_unless_disabled() -> None:
    assert RULES.open([MISS, MISS, HIT]).action == Action(ActionKind.REFUSE, 0)
    assert replace(RULES, theta_prefix=None).open([MISS, HIT]).row.state is State.BENIGN
    assert replace(RULES, theta_query=None).open([HIT, MISS]).row.state is State.BENIGN


# ---- rule 1 -------------------------------------------------------------------------------------------------


def test_rule_1_renews_the_slot_up_to_r1_then_freezes() -> None:
    row = RowState(State.REFUSING)
    for step in range(1, 11):
        assert RULES.probes(row, step) == (Probe(ProbeKind.REFRESH, 1, step, writes=True),)
        assert RULES.step(row, step, [(RULES.probes(row, step)[0], HIT)]) == Transition(row)
    assert RULES.probes(row, 11) == ()
    assert RULES.probes(row, 5, final=True) == ()
    assert RULES.probes(replace(row, frozen=True), 3) == ()


@pytest.mark.parametrize(("inserted", "due"), [(8, True), (10, True), (11, False)])
def test_rule_1_resumes_after_the_trigger(inserted: int, due: bool) -> None:
    probes = RULES.refusing_after(RowState(State.REFUSING), inserted)
    assert probes == ((Probe(ProbeKind.REFRESH, 1, inserted, writes=True),) if due else ())


# ---- rules 2 and 3 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "prefix", "start"), [(1, 0, 1), (10, 0, 1), (11, 0, 2), (3, 4, -3), (3, 20, -6)])
def test_rule_2_window(step: int, prefix: int, start: int) -> None:
    assert RULES.probes(RowState(), step, prefix=prefix) == (Probe(ProbeKind.WINDOW, start, step, writes=True),)


@pytest.mark.parametrize(
    ("alarm", "step", "prefix", "span"),
    [(1, 2, 0, (1, 2)), (12, 13, 0, (3, 13)), (12, 14, 0, (3, 14)), (2, 3, 3, (-2, 3)), (2, 3, 20, (-7, 3))],
)
def test_rule_3_window_is_a_probe(alarm: int, step: int, prefix: int, span: tuple[int, int]) -> None:
    row = RowState(State.PENDING, since=alarm, count=1)
    confirm, window = RULES.probes(row, step, prefix=prefix)
    assert confirm == Probe(ProbeKind.CONFIRM, *span, writes=False, alarm=alarm)
    assert window.kind is ProbeKind.WINDOW and window.writes  # a scheduled step inside PENDING
    assert replace(RULES, schedule=Periodic(100)).probes(row, step, prefix=prefix) == (confirm,)


def test_rule_3_window_ends_r3_after_the_alarm() -> None:
    row = RowState(State.PENDING, since=5, count=1)
    assert replace(RULES, r3=1).probes(row, 7)[0].end == 6


@pytest.mark.parametrize(
    ("name", "tau", "script", "expected", "action"),
    [
        ("nothing", 3, [(MISS, MISS)] * 3, ["benign"] * 3, Action()),
        (
            "three hits",
            3,
            [(MISS, 0), (HIT, 0), (MISS, HIT), (MISS, HIT)],
            ["benign", "pending1", "pending2", "refusing"],
            Action(ActionKind.REFUSE, 2, Probe(ProbeKind.REFRESH, 1, 2, writes=True)),
        ),
        (
            "one is enough for tau 1",
            1,
            [(MISS, 0), (HIT, 0)],
            ["benign", "refusing"],
            Action(ActionKind.REFUSE, 2, Probe(ProbeKind.REFRESH, 1, 2, writes=True)),
        ),
        (
            "tau 2",
            2,
            [(HIT, 0), (MISS, HIT)],
            ["pending1", "refusing"],
            Action(ActionKind.REFUSE, 1, Probe(ProbeKind.REFRESH, 1, 1, writes=True)),
        ),
        ("false alarm", 3, [(HIT, 0), (MISS, MISS), (MISS, 0)], ["pending1", "benign", "benign"], Action()),
        ("late false alarm", 3, [(HIT, 0), (MISS, HIT), (MISS, MISS)], ["pending1", "pending2", "benign"], Action()),
        ("false alarm, next alarm at once", 3, [(HIT, 0), (HIT, MISS)], ["pending1", "pending1"], Action()),
        ("a hit inside PENDING does not count twice", 3, [(HIT, 0), (HIT, HIT)], ["pending1", "pending2"], Action()),
    ],
)
def test_transitions(
    name: str, tau: int, script: list[tuple[float, float]], expected: list[str], action: Action
) -> None:
    moves = run(replace(RULES, tau=tau), script)
    assert states(moves) == expected, name
    assert moves[-1].action == action
    assert all(move.action == Action() for move in moves[:-1])


def test_alarm_after_a_false_alarm_counts_from_its_own_step() -> None:
    assert run(RULES, [(HIT, 0), (HIT, MISS)])[-1].row == RowState(State.PENDING, since=2, count=1)


@pytest.mark.parametrize(
    ("dependency", "action"),
    [
        ("low", Action(ActionKind.FREEZE, 3, Probe(ProbeKind.REFRESH, 1, 3, writes=True))),
        ("medium", Action(ActionKind.REFUSE, 1, Probe(ProbeKind.REFRESH, 1, 1, writes=True))),
        ("high", Action(ActionKind.STOP, 1)),
    ],
)
def test_intervention_by_dependency(dependency: str, action: Action) -> None:
    move = run(replace(RULES, dependency=Dependency(dependency)), [(HIT, 0), (MISS, HIT), (MISS, HIT)])[-1]
    assert move.action == action
    assert move.row.state is State.REFUSING and move.row.frozen and move.row.since == 1


# ---- the end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "ended", "keep"),
    [
        ([(HIT, 0)], False, 1),  # the token limit at the alarm itself
        ([(HIT, 0)], True, 0),  # an end of turn is never kept under a refusal
        ([(MISS, 0), (HIT, 0), (MISS, HIT)], False, 2),
        ([(MISS, 0), (HIT, 0), (MISS, HIT)], True, 2),
        ([(HIT, 0), (HIT, MISS)], False, 2),  # a false alarm whose step raises the next
    ],
)
def test_a_final_step_that_leaves_pending_intervenes(script: list[tuple[float, float]], ended: bool, keep: int) -> None:
    move = run(RULES, script, final=True, ended=ended)[-1]
    assert (move.action.kind, move.action.keep) == (ActionKind.REFUSE, keep)


def test_a_final_step_is_scheduled_and_may_end_well() -> None:
    sparse = replace(RULES, schedule=Periodic(50))
    assert sparse.probes(RowState(), 7) == ()
    assert [probe.kind for probe in sparse.probes(RowState(), 7, final=True)] == [ProbeKind.WINDOW]
    assert run(sparse, [(MISS, 0)] * 4, final=True)[-1] == Transition(RowState())
    assert run(RULES, [(HIT, 0), (MISS, MISS)], final=True)[-1] == Transition(RowState())


def test_first_never_looks_at_the_answer() -> None:
    rules = replace(RULES, schedule=First())
    assert all(not rules.probes(RowState(), step, final=step == 9) for step in range(1, 10))


# ---- what may be shown, what calibration sees ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "shown"),
    [(RowState(), 9), (RowState(State.PENDING, since=6, count=2), 6), (RowState(State.REFUSING, since=6), 9)],
)
def test_pending_tokens_are_held_back(row: RowState, shown: int) -> None:
    assert row.shown(9) == shown


def test_schedules_do_not_depend_on_state_or_thresholds() -> None:
    rules = replace(RULES, schedule=Periodic(3))
    for step in range(1, 20):
        benign = rules.probes(RowState(), step)
        pending = rules.probes(RowState(State.PENDING, since=max(1, step - 1), count=1), step)
        assert [p for p in pending if p.kind is ProbeKind.WINDOW] == list(benign)
        assert replace(rules, theta_window=None).probes(RowState(), step) == benign


def test_recording_asks_for_every_window_of_the_statistic_and_never_moves() -> None:
    rules = replace(RULES, schedule=Periodic(3), tau=3, record=True, theta_query=None)
    asked = {(p.alarm or step, p.end) for step in range(1, 8) for p in rules.probes(RowState(), step)}
    assert asked == {(3, 3), (3, 4), (3, 5), (6, 6), (6, 7)}
    assert rules.open([99.0]) == Transition(RowState())
    assert rules.step(RowState(), 3, [(Probe(ProbeKind.WINDOW, 1, 3, True), 99.0)]) == Transition(RowState())
