"""Decoding options: checked values, thresholds as logits, helpful refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safealign.decoding.options import NAMES, CalibratedThresholds, DecodingOptions
from safealign.errors import ConfigError

CALIBRATED = CalibratedThresholds(query=2.0, window=None, prefix=3.0, temperature=2.0)


def test_calibrated_thresholds_are_taken_as_logits_and_none_is_off() -> None:
    rules = DecodingOptions().rules(CALIBRATED)
    assert (rules.theta_query, rules.theta_window, rules.theta_prefix) == (2.0, None, 3.0)


def test_a_probability_becomes_the_logit_at_which_p_reaches_it() -> None:
    theta = DecodingOptions(theta_query=0.9).rules(CALIBRATED).theta_query
    assert theta is not None and CALIBRATED.p(theta) == pytest.approx(0.9)
    plain = DecodingOptions(theta_query=0.9, theta_window=None, theta_prefix=None).rules().theta_query
    assert plain == pytest.approx(math.log(9.0))


def test_calibrated_without_a_calibration_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="theta_query=0.5"):
        DecodingOptions().rules(None)
    assert DecodingOptions().rules(None, record=True).theta_query is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tau", 4),
        ("tau", 0),
        ("tau", 2.5),
        ("r1", -1),
        ("r2", 0),
        ("r3", 0),
        ("interval", 0),
        ("floor", 0),
        ("schedule", "sometimes"),
        ("dependency", "extreme"),
        ("theta_query", 1.0),
        ("theta_window", "0.5"),
        ("theta_prefix", True),
        ("max_new_tokens", 0),
        ("max_new_tokens", "many"),
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("top_p", 1.5),
        ("top_k", -1),
        ("seed", 0.5),
    ],
)
def test_refuses_values_out_of_range_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        DecodingOptions(**{name: value})


def test_names_every_bad_value_at_once() -> None:
    with pytest.raises(ConfigError, match="tau.*top_p.*theta_query"):
        DecodingOptions(tau=9, top_p=2.0, theta_query=3.0)


@pytest.mark.parametrize(("typo", "meant"), [("temprature", "temperature"), ("theta_windows", "theta_window")])
def test_unknown_option_gets_the_nearest_name(typo: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{meant}'"):
        DecodingOptions().override({typo: 1})


def test_unknown_option_without_a_neighbour_lists_all() -> None:
    with pytest.raises(ConfigError, match="known options: schedule"):
        DecodingOptions().override({"zzz": 1})


def test_p_does_not_overflow() -> None:
    assert CALIBRATED.p(-1e9) == pytest.approx(0.0, abs=1e-300)
    assert CALIBRATED.p(1e9) == 1.0


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10**9),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.text(max_size=3), max_size=2),
    st.sampled_from(["calibrated", "every", "cascade", "high"]),
)


@pytest.mark.parametrize("temperature", [1e-5, 1e-38, 1e-45, 1e-300])
def test_a_temperature_that_would_overflow_the_logits_is_greedy(temperature: float) -> None:
    assert DecodingOptions(temperature=temperature).temperature == 0.0
    assert DecodingOptions(temperature=1e-3).override({"temperature": temperature}).temperature == 0.0


@given(st.dictionaries(st.one_of(st.sampled_from(NAMES), st.text(max_size=6)), ANYTHING, max_size=4))
def test_whatever_is_given_is_taken_or_refused_with_a_clear_error(changes: dict[str, Any]) -> None:
    try:
        options = DecodingOptions().override(changes)
    except ConfigError as error:
        assert str(error)
        return
    assert DecodingOptions().override({name: getattr(options, name) for name in changes}) == options
    hash(options)
