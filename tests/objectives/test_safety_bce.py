"""The safety loss against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits

from safealign.objectives.safety_bce import safety_bce

LOGITS = torch.tensor([[1.5, -0.3, 7.0], [0.2, -4.0, 0.9]])
LABELS = torch.tensor([[1.0, 0.0, -100.0], [-100.0, 1.0, 0.0]])
CHOSEN = LABELS >= 0


def test_it_is_the_mean_cross_entropy_of_the_labelled_rows() -> None:
    expected = binary_cross_entropy_with_logits(LOGITS[CHOSEN], LABELS[CHOSEN])
    torch.testing.assert_close(safety_bce(LOGITS, LABELS), expected)


@given(st.lists(st.tuples(st.floats(-30, 30), st.booleans()), min_size=1, max_size=8))
def test_it_is_the_papers_formula(rows: list[tuple[float, bool]]) -> None:
    """L_cls = -1/N Σ [y log σ(z) + (1 - y) log(1 - σ(z))], written out in double precision."""
    terms = [math.log1p(math.exp(-z if y else z)) for z, y in rows]
    found = safety_bce(torch.tensor([z for z, _ in rows]), torch.tensor([float(y) for _, y in rows]))
    assert found.item() == pytest.approx(sum(terms) / len(terms), rel=1e-5, abs=1e-6)


def test_a_head_that_knows_nothing_loses_ln_2() -> None:
    loss = safety_bce(torch.zeros(4), torch.tensor([0.0, 1.0, 1.0, -100.0]))
    assert loss.item() == pytest.approx(math.log(2))


def test_pos_weight_scales_the_malicious_terms_alone() -> None:
    weight = torch.tensor(3.0)
    expected = binary_cross_entropy_with_logits(LOGITS[CHOSEN], LABELS[CHOSEN], pos_weight=weight)
    torch.testing.assert_close(safety_bce(LOGITS, LABELS, pos_weight=3.0), expected)
    logit, negative = torch.tensor([0.7]), torch.tensor([0.0])
    assert safety_bce(logit, negative, pos_weight=3.0) == safety_bce(logit, negative)


def test_label_smoothing_moves_labels_towards_a_half() -> None:
    smooth = LABELS[CHOSEN] * 0.9 + 0.05
    expected = binary_cross_entropy_with_logits(LOGITS[CHOSEN], smooth)
    torch.testing.assert_close(safety_bce(LOGITS, LABELS, label_smoothing=0.1), expected)
    full = safety_bce(LOGITS, LABELS, label_smoothing=1.0)
    torch.testing.assert_close(full, safety_bce(LOGITS, torch.where(CHOSEN, 0.5, LABELS)))


@pytest.mark.parametrize("n_rows", [10, torch.tensor(10), torch.tensor(10.0)])
def test_n_rows_is_the_divisor(n_rows: int | torch.Tensor) -> None:
    torch.testing.assert_close(safety_bce(LOGITS, LABELS, n_rows=n_rows), safety_bce(LOGITS, LABELS) * 4 / 10)


def test_parts_of_a_batch_add_up_to_the_whole_with_the_global_count() -> None:
    parts = [safety_bce(LOGITS[i], LABELS[i], n_rows=4) for i in range(2)]
    torch.testing.assert_close(torch.stack(parts).sum(), safety_bce(LOGITS, LABELS))


@pytest.mark.parametrize("n_rows", [None, 0, 5])
def test_no_labelled_row_is_a_differentiable_zero(n_rows: int | None) -> None:
    logits = LOGITS.clone().requires_grad_()
    loss = safety_bce(logits, torch.full_like(LABELS, -100.0), n_rows=n_rows)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None and not logits.grad.any()


def test_unlabelled_rows_get_no_gradient_and_labelled_ones_the_residual() -> None:
    logits = LOGITS.clone().requires_grad_()
    safety_bce(logits, LABELS).backward()
    residual = torch.where(CHOSEN, (torch.sigmoid(LOGITS) - LABELS) / 4, 0.0)
    torch.testing.assert_close(logits.grad, residual)


def test_it_is_computed_in_fp32() -> None:
    loss = safety_bce(LOGITS.bfloat16(), LABELS.bfloat16())
    assert loss.dtype is torch.float32
    torch.testing.assert_close(loss, safety_bce(LOGITS.bfloat16().float(), LABELS))


def test_large_logits_stay_finite() -> None:
    assert safety_bce(torch.tensor([1e4, -1e4]), torch.tensor([0.0, 1.0])).item() == pytest.approx(1e4)


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_mean_over_ranks_is_the_mean_over_all_rows(ranks: int) -> None:
    """Also where there are fewer labelled rows than ranks: gradients are averaged, and most ranks have none."""
    logits = torch.arange(3.0 * ranks).reshape(ranks, 3) - 4.0
    labels = torch.full_like(logits, -100.0)
    labels[0, 1] = 1.0
    each = [safety_bce(z, y, n_rows=(labels >= 0).sum() / ranks) for z, y in zip(logits, labels, strict=True)]
    torch.testing.assert_close(torch.stack(each).mean(), safety_bce(logits, labels))
