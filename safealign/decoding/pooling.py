"""What a pooled head needs to remember of a batch: its requests' content, and the newest states of its answers.

Nothing grows with an answer: a ring holds the newest states, which windows read, and a running total the sum over all
generated tokens, which refresh rows read. Withdrawn tokens are taken out of the total again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from safealign.decoding.rows import Prompt
from safealign.layout import SafetyRow, Span

RING = 64  # newest response rows kept at least


class BatchMemory:
    """States at the head's depths, fp32, of up to `n_rows` rows; `reach`: how many of the newest may be read again.

    A response row is a caller's prefix's or a generated token's. Rows are named by their index in the cache, text rows
    by their position in the row's text.
    """

    def __init__(self, n_rows: int, reach: int = 0) -> None:
        self.n_rows, self.ring = n_rows, max(RING, reach)
        self._prompts: list[Prompt | None] = [None] * n_rows
        self._lengths = [0] * n_rows
        self._states: torch.Tensor | None = None  # [rows, ring, depths, H]
        self._total = self._content = self._last_content = torch.empty(0)  # [rows, depths, H]
        self._n_content = [0] * n_rows

    def open(self, row: int, prompt: Prompt, states: torch.Tensor) -> None:
        """Takes the states `[n_text, depths, H]` of a whole prompt into `row`."""
        if self._states is None:
            self._allocate(states)
        assert self._states is not None
        self._states[row] = 0.0  # a window reads past its end, times zero: what stands there must be a number
        self._prompts[row], self._lengths[row] = prompt, len(states)
        self._n_content[row] = sum(span.length for span in prompt.content)
        self._content[row] = sum_over(states, prompt.content)
        self._last_content[row] = states[prompt.last_query]
        self._total[row] = 0.0
        first = max(self._first(row), len(states) - self.ring)  # only response rows are read from the ring
        newest = torch.arange(first, len(states), device=states.device)
        self._states[row, newest % self.ring] = states[newest]

    def append(self, rows: Sequence[int], states: torch.Tensor) -> None:
        """Takes one more text row of each of `rows`: `states` `[N, depths, H]`."""
        assert self._states is not None
        at = torch.tensor([[row, self._lengths[row] % self.ring] for row in rows], device=states.device)
        self._states[at[:, 0], at[:, 1]] = states
        generated = [i for i, row in enumerate(rows) if self._lengths[row] >= self._prompt(row).n_text]
        if len(generated) == len(rows):
            self._total.index_add_(0, at[:, 0], states)
        elif generated:
            chosen = torch.tensor(generated, device=states.device)
            self._total.index_add_(0, at[chosen, 0], states[chosen])
        for row in rows:
            self._lengths[row] += 1

    def cut(self, row: int, length: int) -> None:
        """Forgets the text rows of `row` from `length` on."""
        assert self._states is not None
        first = max(length, self._prompt(row).n_text)
        if first < self._lengths[row]:
            self._total[row] -= self._newest(row, first, self._lengths[row]).sum(dim=0)
        self._lengths[row] = length

    def move(self, row: int, to: int) -> None:
        """Row `row` takes the place `to`, or is copied there where it stays in use."""
        if self._states is None:
            return
        for name in ("_states", "_total", "_content", "_last_content"):
            getattr(self, name)[to] = getattr(self, name)[row]
        self._prompts[to], self._lengths[to] = self._prompts[row], self._lengths[row]
        self._n_content[to] = self._n_content[row]

    def means(self, rows: Sequence[int], safety: Sequence[SafetyRow]) -> torch.Tensor:
        """Mean state `[N, depths, H]` over what each safety row pools."""
        if all(len(row.pools) == 1 and row.pools[0].start >= self._first(at) for at, row in self._pairs(rows, safety)):
            return self._window_means(rows, [row.pools[0] for row in safety])
        return torch.stack([self._mean(at, row.pools) for at, row in self._pairs(rows, safety)])

    def lasts(self, rows: Sequence[int], safety: Sequence[SafetyRow]) -> torch.Tensor:
        """State `[N, depths, H]` of the last row that each pools: a response row, or else the last content row."""
        assert self._states is not None
        places = torch.tensor([[at, row.last % self.ring] for at, row in self._pairs(rows, safety)])
        places = places.to(self._states.device)
        found = self._states[places[:, 0], places[:, 1]]
        for index, (at, row) in enumerate(self._pairs(rows, safety)):
            if row.last < self._first(at):
                found[index] = self._last_content[at]
            else:
                self._check(at, row.last)
        return found

    @staticmethod
    def _pairs(rows: Sequence[int], safety: Sequence[SafetyRow]) -> list[tuple[int, SafetyRow]]:
        return list(zip(rows, safety, strict=True))

    def _window_means(self, rows: Sequence[int], spans: Sequence[Span]) -> torch.Tensor:
        assert self._states is not None
        for row, span in zip(rows, spans, strict=True):
            self._check(row, span.start)
        longest, device = max(span.length for span in spans), self._states.device
        table = torch.tensor([[row, span.start, span.length] for row, span in zip(rows, spans, strict=True)])
        at, start, length = table.to(device).unbind(1)
        offsets = torch.arange(longest, device=device)
        states = self._states[at[:, None], (start[:, None] + offsets) % self.ring]
        weights = (offsets < length[:, None]).to(states.dtype) / length[:, None]
        return torch.einsum("nl,nldh->ndh", weights, states)

    def _mean(self, row: int, spans: Sequence[Span]) -> torch.Tensor:
        total, count = torch.zeros_like(self._content[row]), 0
        for span in spans:
            if span.start >= self._first(row):
                total, count = total + self._sum(row, span), count + span.length
        if any(span.start < self._first(row) for span in spans):
            total, count = total + self._content[row], count + self._n_content[row]
        return total / max(count, 1)

    def _sum(self, row: int, span: Span) -> torch.Tensor:
        """Sum over response rows: from the ring, or what is left of the total after the rows behind the span."""
        if span.start == self._prompt(row).n_text and self._lengths[row] - span.end <= self.ring:
            if span.end == self._lengths[row]:
                return self._total[row]
            return self._total[row] - self._newest(row, span.end, self._lengths[row]).sum(dim=0)
        return self._newest(row, span.start, span.end).sum(dim=0)

    def _newest(self, row: int, start: int, end: int) -> torch.Tensor:
        assert self._states is not None
        self._check(row, start)
        return self._states[row, torch.arange(start, end, device=self._states.device) % self.ring]

    def _check(self, row: int, start: int) -> None:
        """Refuses to read what newer states have taken the place of."""
        if self._lengths[row] - start > self.ring:
            raise ValueError(f"text row {start} is no longer remembered: only the newest {self.ring} are")

    def _prompt(self, row: int) -> Prompt:
        found = self._prompts[row]
        assert found is not None
        return found

    def _first(self, row: int) -> int:
        """Text row of the first response token."""
        prompt = self._prompt(row)
        return prompt.n_text - prompt.prefix

    def _allocate(self, states: torch.Tensor) -> None:
        shape = states.shape[1:]
        self._states = states.new_zeros(self.n_rows, self.ring, *shape)
        self._total, self._content, self._last_content = (states.new_zeros(self.n_rows, *shape) for _ in range(3))


def sum_over(states: torch.Tensor, spans: Sequence[Span]) -> torch.Tensor:
    """Sum `[depths, H]` of the states `[n, depths, H]` within spans."""
    total = torch.zeros_like(states[0])
    for span in spans:
        total += states[span.start : span.end].sum(dim=0)
    return total
