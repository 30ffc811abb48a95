"""Keeps evaluation prompts out of training: among the records, and again in what the rules make of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from safealign.config.groups import LeakCheckConfig
from safealign.data.leaks import Leak, LeakReport, drop_leaks, find_leaks
from safealign.data.mixing import kind_of
from safealign.data.records import Record
from safealign.errors import DataError

Counts = dict[str, dict[str, int]]
Encode = Callable[[list[str]], Any]


class LeakGuard:
    """Looks at every user turn of a record; `encode` None leaves the search by meaning out.

    `counts` says how many prompts were left out so far, by evaluation set and kind of match.
    """

    def __init__(
        self, evaluation: Mapping[str, Sequence[str]], check: LeakCheckConfig, encode: Encode | None = None
    ) -> None:
        self.evaluation, self.check = evaluation, check
        self.encode = None if encode is None else remembered(encode)
        self.counts: Counts = {}

    def clean(self, records: Sequence[Record], say: Callable[[str], None] | None = None) -> list[Record]:
        """The records without leaks; raises DataError for any if `leak_check.action` is error."""
        if not self.check.enabled:
            return list(records)
        kept, report = drop_leaks(records, self._leaks(records, self.encode))
        self._note(report)
        if say is not None:
            say(report.summary())
        dropped = report.dropped
        if dropped and self.check.action == "error":
            raise DataError(
                f"{len(dropped)} training prompts repeat evaluation prompts; take them out, or set "
                "data.leak_check.action=drop",
                [f"{row}: {leak.kind} match with {leak.evaluation}, row {leak.row + 1}" for row, leak in dropped],
            )
        return kept

    def clean_derived(self, records: Sequence[Record], checked: Sequence[Record]) -> list[Record]:
        """`records` without derived ones that leak; those that were `checked` pass, and nothing raises.

        A rule can hit upon an evaluation prompt by chance. A wrapped request is searched by letters only: its
        words are mostly the wrapper's.
        """
        if not self.check.enabled:
            return list(records)
        done = {record.id for record in checked}
        derived = [index for index, record in enumerate(records) if record.id not in done]
        wrapped = [index for index in derived if kind_of(records[index]) == "wrapped"]
        plain = [index for index in derived if kind_of(records[index]) != "wrapped"]
        leaks = [
            leak._replace(train=rows[leak.train])
            for rows, encode in ((plain, self.encode), (wrapped, None))
            for leak in self._leaks([records[index] for index in rows], encode)
        ]
        kept, report = drop_leaks(records, leaks)
        self._note(report)
        return kept

    def _leaks(self, records: Sequence[Record], encode: Encode | None) -> list[Leak]:
        turns = [(i, t.content) for i, record in enumerate(records) for t in record.prompt if t.role == "user"]
        found = find_leaks([text for _, text in turns], self.evaluation, encode, self.check.threshold)
        return [leak._replace(train=turns[leak.train][0]) for leak in found]

    def _note(self, report: LeakReport) -> None:
        for name, kinds in report.counts().items():
            table = self.counts.setdefault(name, {})
            for kind, n in kinds.items():
                table[kind] = table.get(kind, 0) + n


def remembered(encode: Encode) -> Encode:
    """`encode` that embeds each text once."""
    known: dict[str, torch.Tensor] = {}

    def look_up(texts: list[str]) -> torch.Tensor:
        """The vectors, with those of new texts computed."""
        missing = list(dict.fromkeys(text for text in texts if text not in known))
        if missing:
            known.update(zip(missing, torch.as_tensor(encode(missing)), strict=True))
        return torch.stack([known[text] for text in texts])

    return look_up
