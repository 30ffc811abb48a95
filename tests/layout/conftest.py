"""Hand-made conversations for layout tests: rows are numbers, no model and no tokenizer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from safealign.layout import Rendered, Span

MakeRendered = Callable[..., Rendered]


@pytest.fixture
def rendered() -> MakeRendered:
    """Content stands at [3, 7) and [9, 12), the generation prompt at [12, 15), then the answer."""

    def make(n_response: int = 12) -> Rendered:
        n = 15 + n_response
        return Rendered(tuple(range(n)), 14, (Span(3, 7), Span(9, 12)), Span(15, n))

    return make
