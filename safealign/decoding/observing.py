"""States of answers in the making, out of the very forwards that make them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakKeyDictionary

import torch

from safealign.decoding.decoded import DecodedRow
from safealign.decoding.rows import EngineRow
from safealign.errors import ConfigError
from safealign.modeling.hidden import HiddenExtractor, require_finite


class Observer(Protocol):
    """Who is shown the states at `depths` of everything that an engine feeds."""

    depths: tuple[int, ...]

    def fed(self, row: EngineRow, tokens: Sequence[int], states: torch.Tensor) -> None:
        """`tokens` were fed behind the row's first `row.length`; `states` `[len(tokens), depths, H]` are theirs."""
        ...

    def withdrawn(self, row: EngineRow, length: int) -> None:
        """The row was rolled back to its first `length` text rows."""
        ...

    def copied(self, row: EngineRow, others: Sequence[EngineRow]) -> None:
        """What was fed of `row` so far was not fed again for these others of the same prompt."""
        ...


@dataclass
class _Record:
    """Sum over the rows before the answer, then token and state of each row from the prompt's last one on."""

    before: torch.Tensor | None = None
    tokens: list[int] = field(default_factory=list)
    states: list[torch.Tensor] = field(default_factory=list)


class AnswerStates:
    """Keeps what `extractor` would read of each prompt and of its answer.

    That is one state for each token of an answer and each depth: at one depth less than the keys and values of two
    blocks. A row's are let go when it is settled, or with the row. Raises ConfigError for an extractor that pools
    safety rows.

    `said`: the ids that count as a row's answer; None for all but an end of turn.
    """

    def __init__(self, extractor: HiddenExtractor, said: Callable[[DecodedRow], list[int]] | None = None) -> None:
        if "row" in extractor.pool:
            raise ConfigError("answers in the making have no safety rows to pool: read `last` or `mean`")
        self.depths, self.pool, self.dtype = extractor.depths, extractor.pool, extractor.dtype
        self.said = said or spoken
        self._records: WeakKeyDictionary[EngineRow, _Record] = WeakKeyDictionary()
        self._settled: WeakKeyDictionary[DecodedRow, torch.Tensor | None] = WeakKeyDictionary()

    def fed(self, row: EngineRow, tokens: Sequence[int], states: torch.Tensor) -> None:
        """Takes in the states of newly fed rows."""
        record = self._records.setdefault(row, _Record())
        early = min(len(tokens), max(0, row.prompt.rendered.query_end - row.length))
        if early:
            total = states[:early].float().sum(dim=0)
            record.before = total if record.before is None else record.before + total
            states = states[early:].clone()  # lets the prompt's other states go
        record.tokens += tokens[early:]
        record.states += states.unbind(0)

    def withdrawn(self, row: EngineRow, length: int) -> None:
        """Forgets the rows from `length` on, which are never before the prompt's last one."""
        record, kept = self._records[row], length - row.prompt.rendered.query_end
        del record.tokens[kept:], record.states[kept:]

    def copied(self, row: EngineRow, others: Sequence[EngineRow]) -> None:
        """Gives the others what was seen of the row."""
        record = self._records[row]
        for other in others:
            self._records[other] = _Record(record.before, list(record.tokens), list(record.states))

    def settle(self, row: DecodedRow) -> None:
        """Reads a row that is done, and lets the states of its tokens go: who asks later gets what was read."""
        self._settled[row] = self.of(row)
        self._records.pop(row.place, None)

    def of(self, row: DecodedRow) -> torch.Tensor | None:
        """`[2, pools, depths, H]` on the CPU: what is read of the prompt, and of the answer (what `said` says of it).

        They equal `Text.prompt` and `Text.answer`, read by the extractor. None where the answer was not fed as it
        stands: a fixed refusal that took its place, one that was cancelled, or one that `said` writes anew. Raises
        DataError for states that are not finite, as the extractor does.
        """
        if row in self._settled:
            return self._settled[row]
        record = self._records.get(row.place) if hasattr(row, "place") else None
        rendered, said = row.prompt.rendered, self.said(row)
        fed = [*rendered.input_ids[rendered.query_end :], *said]
        if record is None or record.tokens[: len(fed)] != fed:
            return None
        states = torch.stack(record.states[: len(fed)]).float()
        prompt, answer = states[0], states[1:] if len(fed) > 1 else states
        total = prompt if record.before is None else record.before + prompt
        means = torch.stack([total / (rendered.query_end + 1), answer.mean(dim=0)])
        found = {"last": torch.stack([prompt, answer[-1]]), "mean": means}
        return require_finite(torch.stack([found[name] for name in self.pool], dim=1).to(self.dtype).cpu())


def spoken(row: DecodedRow) -> list[int]:
    """The answer's tokens, an end of turn left out."""
    return row.tokens[:-1] if row.tokens and row.tokens[-1] in row.eos_ids else row.tokens
