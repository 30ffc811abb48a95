"""The mask equals the method's table of who may attend to whom, cell by cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safealign.layout import (
    Layout,
    Rendered,
    SafetyRow,
    Span,
    build_layout,
    refresh_row,
    request_row,
    window_row,
)
from safealign.layout.masks import additive, build, windowed


@dataclass(frozen=True)
class Case:
    """A random conversation with safety rows, told in the words of the table."""

    text: Rendered
    rows: tuple[SafetyRow, ...]
    told: tuple[tuple[Any, ...], ...]  # ("request",) | ("window", first row, end row) | ("refresh", k)
    versions: tuple[int, ...]
    gate: bool
    sees_query: bool

    @property
    def layout(self) -> Layout:
        return build_layout(self.text, self.rows, gate=self.gate, versions=self.versions)

    def content(self, row: int) -> bool:
        return any(span.start <= row < span.end for span in self.text.content)

    def may(self, query: int, key: int) -> bool:
        """The table: `query` and `key` are rows of the layout, text rows first."""
        n = len(self.text.input_ids)
        if query >= n:
            return key == query or (key < n and self._safety_may(self.told[query - n], key))
        if key < n:
            return key <= query
        return self._version(query) == key - n

    def _safety_may(self, told: tuple[Any, ...], key: int) -> bool:
        answer = self.text.response.start
        if told[0] == "request":
            return self.content(key)
        if told[0] == "window":
            return told[1] <= key < told[2] or (self.sees_query and self.content(key))
        return self.content(key) or answer <= key < answer + told[1]

    def _version(self, row: int) -> int | None:
        """The newest version whose span ends before this response row."""
        if not self.gate or row < self.text.query_end:
            return None
        ready = [v for v in self.versions if v == 0 or self._last(self.told[v]) < row]
        return ready[-1]

    def _last(self, told: tuple[Any, ...]) -> int:
        return told[2] - 1 if told[0] == "window" else self.text.response.start + told[1] - 1


@st.composite
def cases(draw: st.DrawFn) -> Case:
    at, content = draw(st.integers(0, 3)), []
    for _ in range(draw(st.integers(1, 3))):
        length = draw(st.integers(0, 4))
        content.append(Span(at, at + length))
        at += length + draw(st.integers(1, 3))
    n_answer = draw(st.integers(0, 8))
    text = Rendered(tuple(range(at + n_answer)), at - 1, tuple(content), Span(at, at + n_answer))
    sees_query = draw(st.booleans())
    told: list[tuple[Any, ...]] = [("request",)]
    for _ in range(draw(st.integers(0, 4)) if n_answer else 0):
        end = draw(st.integers(1, n_answer))
        start = draw(st.integers(0, end - 1))
        told.append(draw(st.sampled_from([("window", at + start, at + end), ("refresh", end)])))
    rows = tuple(_row(text, entry, sees_query) for entry in told)
    writers = draw(st.sets(st.sampled_from(range(1, len(told))))) if len(told) > 1 else set()
    in_time = sorted(writers, key=lambda index: rows[index].ready)
    return Case(text, rows, tuple(told), (0, *in_time), draw(st.booleans()), sees_query)


def _row(text: Rendered, told: tuple[Any, ...], sees_query: bool) -> SafetyRow:
    if told[0] == "request":
        return request_row(text)
    if told[0] == "window":
        return window_row(text, told[1], told[2], sees_query=sees_query)
    return refresh_row(text, told[1])


def _allowed(mask: torch.Tensor) -> torch.Tensor:
    assert set(mask.unique().tolist()) <= {0.0, torch.finfo(mask.dtype).min}
    return mask == 0


@given(case=cases())
def test_the_mask_is_the_table(case: Case) -> None:
    found = _allowed(build([case.layout]))[0, 0]
    size = len(case.text.input_ids) + len(case.rows)
    expected = torch.tensor([[case.may(query, key) for key in range(size)] for query in range(size)])
    assert torch.equal(found, expected)


@given(case=cases())
def test_safety_rows_never_attend_to_template_tokens(case: Case) -> None:
    """Rule 4: special, template and instruction rows are neither content nor answer."""
    n = len(case.text.input_ids)
    safety = _allowed(build([case.layout]))[0, 0, n:, :n]
    template = [row for row in range(case.text.response.start) if not case.content(row)]
    assert not safety[:, template].any()


@given(case=cases())
def test_a_text_row_sees_at_most_one_version_and_a_query_row_none(case: Case) -> None:
    n = len(case.text.input_ids)
    seen = _allowed(build([case.layout]))[0, 0, :n, n:].sum(dim=1)
    assert seen[: case.text.query_end].sum() == 0
    assert set(seen[case.text.query_end :].tolist()) <= {int(case.gate)}


@given(first=cases(), second=cases())
def test_padding_attends_to_itself_alone_and_nobody_attends_to_it(first: Case, second: Case) -> None:
    layouts = [first.layout, second.layout]
    n_text = max(layout.n_text for layout in layouts)
    allowed = _allowed(build(layouts))[:, 0]
    for index, layout in enumerate(layouts):
        real = [*range(layout.n_text), *(n_text + i for i in range(len(layout.safety)))]
        padding = [row for row in range(allowed.shape[-1]) if row not in real]
        assert torch.equal(allowed[index][real][:, real], _allowed(build([layout]))[0, 0])
        assert not allowed[index][real][:, padding].any()
        assert torch.equal(allowed[index][padding], torch.eye(allowed.shape[-1], dtype=torch.bool)[padding])


@given(case=cases(), window=st.integers(1, 6))
def test_a_sliding_window_limits_text_rows_and_spares_the_slot(case: Case, window: int) -> None:
    n = len(case.text.input_ids)
    plain, limited = (_allowed(build([case.layout], window=size))[0, 0] for size in (None, window))
    near = torch.tensor([[query - key < window for key in range(n)] for query in range(n)])
    assert torch.equal(limited[:n, :n], plain[:n, :n] & near)
    assert torch.equal(limited[:, n:], plain[:, n:])
    assert torch.equal(limited[n:], plain[n:])


@given(first=cases(), second=cases(), window=st.integers(1, 6))
def test_a_window_put_on_a_mask_is_the_mask_of_that_window(first: Case, second: Case, window: int) -> None:
    layouts = [first.layout, second.layout]
    n_safety = max(len(layout.safety) for layout in layouts)
    assert torch.equal(windowed(build(layouts), window, n_safety=n_safety), build(layouts, window=window))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_mask_is_float_and_additive(rendered, dtype: torch.dtype) -> None:
    layout = build_layout(rendered(), [request_row(rendered())])
    mask = build([layout], dtype=dtype)
    assert mask.dtype is dtype
    assert torch.isfinite(mask).all()
    assert additive(torch.tensor([True, False]), dtype).tolist() == [0.0, torch.finfo(dtype).min]
