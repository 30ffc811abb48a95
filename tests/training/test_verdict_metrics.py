"""Metrics of gathered verdicts: by kind of row, by category, silent where there is nothing to rank."""

from __future__ import annotations

import pytest
import torch

from safealign.layout import RowKind
from safealign.training.verdict_metrics import verdict_metrics


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
