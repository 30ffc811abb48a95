"""What a pooled head needs to remember of a row: the states of its request's content and of its response
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from safealign.decoding.rows import Prompt
from safealign.layout import Span


class RowMemory:
    """States at the head's depths, fp32: the content's sum, its last row, and every response row.

    Response rows are a caller's prefix and the generated tokens; withdrawing tokens cuts them off.
    """

    def __init__(self) -> None:
        self._last_content = torch.empty(0)
        self._content = torch.empty(0)
        self._n_content = 0
        self._first = 0  # text row of the first response state
        self._length = 0
        self._response = torch.empty(0)

    def remember(self, prompt: Prompt, start: int, states: torch.Tensor, pools: Sequence[str]) -> None:
        """Takes the states `[n, depths, H]` of text rows `start …`; the first call brings the whole prompt."""
        if start == 0 and len(states):
            self._remember_prompt(prompt, states)
        if start < self._first:  # query rows: a prompt's, or its last one fed again under a refusal from the start
            states, start = states[self._first - start :], self._first
        if {"mean", "last"} & set(pools) and len(states):
            self._append(start - self._first, states)

    def mean(self, spans: Sequence[Span]) -> torch.Tensor:
        """Mean state `[depths, H]` over spans that are the content, response rows, or both."""
        total, count = torch.zeros_like(self._content), 0
        for span in spans:
            if span.start >= self._first:
                total += self._response[span.start - self._first : span.end - self._first].sum(dim=0)
                count += span.length
        if any(span.start < self._first for span in spans):
            total, count = total + self._content, count + self._n_content
        return total / max(count, 1)

    def last(self, row: int) -> torch.Tensor:
        """State `[depths, H]` of the last row of a span: a response row, or else the last content row."""
        return self._response[row - self._first] if row >= self._first else self._last_content

    def cut(self, length: int) -> None:
        """Forgets text rows from `length` on."""
        self._length = max(0, min(self._length, length - self._first))

    def _remember_prompt(self, prompt: Prompt, states: torch.Tensor) -> None:
        self._first = prompt.n_text - prompt.prefix
        self._n_content = sum(span.length for span in prompt.content)
        self._content = torch.zeros_like(states[0])
        for span in prompt.content:
            self._content += states[span.start : span.end].sum(dim=0)
        self._last_content = states[prompt.last_query].clone()

    def _append(self, at: int, states: torch.Tensor) -> None:
        end = at + len(states)
        if end > len(self._response):
            grown = states.new_zeros(max(64, 2 * end), *states.shape[1:])
            if self._length:
                grown[: self._length] = self._response[: self._length]
            self._response = grown
        self._response[at:end] = states
        self._length = end
