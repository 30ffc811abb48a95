"""Metrics of gathered verdicts: by kind of row, by category, silent where there is nothing to rank."""

from __future__ import annotations

import math

import pytest
import torch

from safealign.layout import RowKind
from safealign.training.verdict_metrics import calibrated_metrics, verdict_metrics


def _verdicts(rows: list[tuple[RowKind, float, float, int]]) -> dict[str, torch.Tensor]:
    kinds, logits, labels, examples = zip(*rows, strict=True) if rows else ((), (), (), ())
    return {
        "kinds": torch.tensor([int(kind) for kind in kinds]),
        "logits": torch.tensor(logits),
        "labels": torch.tensor(labels),
        "examples": torch.tensor(examples),
    }


def test_each_kind_is_ranked_on_its_own() -> None:
    rows = [(RowKind.REQUEST, float(i), float(i >= 2), i) for i in range(4)]
    rows += [(RowKind.WINDOW, -float(i), float(i >= 2), i) for i in range(4)]
    found = verdict_metrics(_verdicts(rows), {})
    assert found["request/auroc"] == pytest.approx(1.0)
    assert found["window/auroc"] == pytest.approx(0.0)
    assert not any(name.startswith("refresh/") for name in found)


def test_a_category_is_ranked_against_all_benign_requests() -> None:
    rows = [
        (RowKind.REQUEST, 0.0, 0.0, 0),
        (RowKind.REQUEST, 2.0, 0.0, 1),
        (RowKind.REQUEST, 3.0, 1.0, 2),
        (RowKind.REQUEST, 1.0, 1.0, 3),
    ]
    found = verdict_metrics(_verdicts(rows), {0: "sea", 1: "sea", 2: "high", 3: "middling"})
    assert found["request/auroc/high"] == pytest.approx(1.0)
    assert found["request/auroc/middling"] == pytest.approx(0.5)
    assert "request/auroc/sea" not in found


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_label_alone_says_nothing(label: float) -> None:
    assert verdict_metrics(_verdicts([(RowKind.REQUEST, 1.0, label, 0)] * 3), {}) == {}


def test_nothing_gathered_says_nothing() -> None:
    assert verdict_metrics(_verdicts([]), {}) == {}


def test_loss_accuracy_and_calibration_of_each_kind() -> None:
    rows = [(RowKind.WINDOW, logit, label, 0) for logit, label in ((2.0, 1.0), (2.0, 0.0), (-2.0, 0.0), (-2.0, 0.0))]
    found = verdict_metrics(_verdicts(rows), {})
    right, wrong = math.log1p(math.exp(-2.0)), math.log1p(math.exp(2.0))
    assert found["window/loss"] == pytest.approx((3 * right + wrong) / 4)
    assert found["window/accuracy@0.5"] == pytest.approx(0.75)
    high = 1 / (1 + math.exp(-2.0))
    assert found["window/calibration_error"] == pytest.approx((high - 0.5 + (1 - high)) / 2)


def test_as_deployed_each_kind_has_its_own_threshold() -> None:
    rows = [(kind, float(i), float(i >= 2), i) for kind in RowKind for i in range(4)]
    found = calibrated_metrics(_verdicts(rows), {"query": 2.0, "window": 3.0}, temperature=1e3)
    assert found["calibrated/request/accuracy"] == pytest.approx(1.0)  # a row fires at its threshold
    assert found["calibrated/window/accuracy"] == pytest.approx(0.75)
    assert found["calibrated/request/calibration_error"] == pytest.approx(0.0, abs=1e-3)  # all are shown as one half
    assert not any("refresh" in name for name in found)


def test_a_threshold_that_is_off_has_no_accuracy() -> None:
    rows = [(RowKind.REQUEST, float(i), float(i >= 2), i) for i in range(4)]
    assert set(calibrated_metrics(_verdicts(rows), {"query": None}, 1.0)) == {"calibrated/request/calibration_error"}
