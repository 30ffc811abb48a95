"""Temperature, calibration error and bins on cases with known answers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from safealign.errors import DataError
from safealign.evaluation.metrics.reliability import (
    TEMPERATURE_RANGE,
    brier,
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
)


def calibrated(n: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, n)
    return logits, (rng.uniform(size=n) < 1 / (1 + np.exp(-logits))).astype(int)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_temperature_undoes_a_scaling(factor: float) -> None:
    logits, labels = calibrated()
    assert fit_temperature(logits * factor, labels) == pytest.approx(factor, rel=0.05)


def test_separated_rows_meet_the_lower_end() -> None:
    assert fit_temperature([-1.0, 1.0], [0, 1]) == pytest.approx(TEMPERATURE_RANGE[0])
    assert fit_temperature([-1.0, 1.0], [1, 0]) == pytest.approx(TEMPERATURE_RANGE[1])


def test_calibrated_probabilities_have_a_small_error() -> None:
    logits, labels = calibrated()
    p = 1 / (1 + np.exp(-logits))
    assert expected_calibration_error(p, labels) < 0.015
    assert expected_calibration_error(1 / (1 + np.exp(-4 * logits)), labels) > 0.1


def test_bins_hold_every_row_once() -> None:
    bins = reliability_bins([0.0, 0.05, 0.95, 1.0], [0, 1, 1, 1])
    assert [b.harmful.n for b in bins] == [2, 2] and bins[-1].high == 1.0
    assert bins[0].mean_probability == pytest.approx(0.025) and bins[0].harmful.value == 0.5
    json.dumps([b.to_dict() for b in bins])


def test_brier_of_known_cases() -> None:
    assert brier([1.0, 0.0], [1, 0]) == 0.0
    assert brier([0.5, 0.5], [1, 0]) == 0.25


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match="harmful and benign"):
        fit_temperature([1.0, 2.0], [1, 1])
    with pytest.raises(DataError, match="finite"):
        fit_temperature([float("inf"), 2.0], [1, 0])
    with pytest.raises(ValueError, match="sigmoid"):
        reliability_bins([2.0], [1])
