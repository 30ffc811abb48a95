"""Tensors of a batch of layouts: padding, pooling weights, labels, positions, the flat form."""

from __future__ import annotations

import torch

from safealign.layout import RowKind, build_layout, refresh_row, request_row, window_row
from safealign.layout.collate import IGNORED_LABEL, SafetyBatch, collate_layouts


def _two(rendered) -> SafetyBatch:
    long, short = rendered(12), rendered(2)
    first = [request_row(long, label=1.0), window_row(long, 17, 22, label=0.0), refresh_row(long, 3)]
    second = [request_row(short, label=0.0)]
    return collate_layouts([build_layout(long, first), build_layout(short, second)])


def test_the_pooling_weights_are_the_mean_over_the_rows_span(rendered) -> None:
    batch = _two(rendered)
    states = torch.randn(27)
    spans = [[*range(3, 7), *range(9, 12)], [*range(17, 22)], [*range(3, 7), *range(9, 12), 15, 16, 17]]
    for column, rows in enumerate(spans):
        torch.testing.assert_close(batch.pool[0, column] @ states, states[rows].mean())
    torch.testing.assert_close(batch.pool[1, 0, 17:].sum(), torch.tensor(0.0))


def test_padding_is_marked_everywhere(rendered) -> None:
    batch = _two(rendered)
    assert batch.n_safety == 3
    assert batch.valid.tolist() == [[True, True, True], [True, False, False]]
    assert batch.labels.tolist() == [[1.0, 0.0, IGNORED_LABEL], [0.0, IGNORED_LABEL, IGNORED_LABEL]]
    assert batch.kinds.tolist() == [
        [RowKind.REQUEST, RowKind.WINDOW, RowKind.REFRESH],
        [RowKind.REQUEST, -1, -1],
    ]
    assert not batch.pool[1, 1:].any()


def test_text_keeps_the_ids_it_would_have_anyway_and_safety_rows_take_their_own(rendered) -> None:
    batch = _two(rendered)
    assert batch.position_ids[:, :27].tolist() == [list(range(27))] * 2
    assert batch.position_ids[0, 27:].tolist() == [12, 22, 18]
    assert batch.position_ids[1, 27] == 12
    assert batch.position_ids.max() < 27


def test_last_is_the_last_row_that_each_row_pools(rendered) -> None:
    assert _two(rendered).last.tolist() == [[11, 21, 17], [11, 0, 0]]


def test_a_batch_survives_the_flat_form(rendered) -> None:
    batch = _two(rendered)
    inputs = {"input_ids": torch.zeros(2, 27)} | batch.as_dict()
    again = SafetyBatch.pop_from(inputs)
    assert list(inputs) == ["input_ids"]
    assert again is not None
    for name, value in batch.as_dict("").items():
        assert torch.equal(getattr(again, name), value)


def test_a_batch_without_safety_columns_is_none() -> None:
    assert SafetyBatch.pop_from({"input_ids": torch.zeros(1, 1)}) is None


def test_layouts_without_safety_rows_collate(rendered) -> None:
    batch = collate_layouts([build_layout(rendered(n), [], versions=()) for n in (3, 0)])
    assert batch.n_safety == 0
    assert batch.mask.shape == (2, 1, 18, 18)
