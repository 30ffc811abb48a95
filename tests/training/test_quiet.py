"""Libraries' own lines stay away, and nothing else does."""

from __future__ import annotations

import warnings

import datasets
import pytest

from safealign.modeling.tiny import tiny_model
from safealign.training.quiet import quiet


def test_one_deprecation_is_silenced_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model()
    with warnings.catch_warnings(record=True) as before:
        warnings.simplefilter("always")
        _ = model.is_gradient_checkpointing
    with warnings.catch_warnings(record=True) as after:
        warnings.simplefilter("always")
        quiet()
        _ = model.is_gradient_checkpointing
        warnings.warn("something else goes away", FutureWarning, stacklevel=1)
    assert len(before) == 1  # else the filter has nothing left to do
    assert [str(warning.message) for warning in after] == ["something else goes away"]
    datasets.Dataset.from_dict({"x": [1, 2]}).map(lambda row: {"y": row["x"]})
    assert capsys.readouterr().err == ""
