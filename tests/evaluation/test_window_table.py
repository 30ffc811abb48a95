"""The windows' table: stops count when they come after the turn, and false alarms are counted as such."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from safealign.evaluation import window_table
from safealign.evaluation.systems import System
from safealign.evaluation.window_table import WITHIN, WindowAnswers, caught, interrupted, window_row_figures


def _answers(kit, n: int = 3, length: int = 12) -> WindowAnswers:
    rows = [(record, [5 + i] * length) for i, record in enumerate(kit.prompts(n))]
    return WindowAnswers(rows, [(record, [20] * length) for record, _ in rows], [(rows[0][0], [9] * length)])


def _stop_at(monkeypatch: pytest.MonkeyPatch, stops: Sequence[int | None]) -> list[list[int]]:
    asked: list[list[int]] = []

    def fake(system: System, answers: Sequence[tuple[object, list[int]]]) -> list[int | None]:
        asked.extend(tokens for _, tokens in answers)
        return list(stops)

    monkeypatch.setattr(window_table, "_stops", fake)
    return asked


def test_only_a_stop_soon_after_the_turn_is_a_catch(kit, ours, monkeypatch) -> None:
    answers = _answers(kit, n=5)
    asked = _stop_at(monkeypatch, [8 + 1, 8 + WITHIN, 8 + WITHIN + 1, None, 4])
    assert caught(System("ours", ours), answers, 8).successes == 2
    assert all(tokens[:8] == [20] * 8 and tokens[8] != 20 for tokens in asked)


def test_an_opening_ends_where_the_answer_ended(kit, ours, monkeypatch) -> None:
    end = next(iter(ours.renderer.eos_ids))
    answers = _answers(kit, n=1)
    answers.benign = [(answers.benign[0][0], [20, 20, end])]
    asked = _stop_at(monkeypatch, [3])
    assert caught(System("ours", ours), answers, 8).successes == 1
    assert asked[0][:2] == [20, 20] and end not in asked[0]


def test_every_stop_of_a_benign_answer_is_a_false_alarm(kit, ours, monkeypatch) -> None:
    _stop_at(monkeypatch, [None, 3, None])
    assert interrupted(System("ours", ours), _answers(kit).benign).value == pytest.approx(1 / 3)


@pytest.mark.parametrize(("theta", "share"), [(0.999999, 0.0), (0.000001, 1.0)])
def test_the_real_windows_obey_the_threshold(kit, ours, theta: float, share: float) -> None:
    system = System("ours", ours, {"theta_window": theta, "tau": 1})
    found = window_row_figures(system, _answers(kit))
    assert set(found) == {"benign", "refusal", "benign_windows", "refusal_windows", "caught", "false"}
    assert found["false"].value == share
    assert 0.0 <= found["benign"].value <= 1.0 and found["benign"].n == 6


def test_without_refusals_their_column_is_left_out(kit, ours) -> None:
    answers = _answers(kit)
    answers.refusals = []
    assert "refusal" not in window_row_figures(System("ours", ours), answers)
