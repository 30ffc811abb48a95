"""The newest logits of every live row, from which its next token is chosen."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from safealign.decoding.decoded import DecodedRow


class NewestLogits:
    """Logits `[V]` by row; a whole forward's are handed back as they came."""

    def __init__(self) -> None:
        self._by_row: dict[DecodedRow, torch.Tensor] = {}
        self._newest: tuple[list[DecodedRow], torch.Tensor] = ([], torch.empty(0))

    def keep(self, rows: Sequence[DecodedRow], logits: torch.Tensor | None) -> None:
        """Takes the logits `[N, V]` of a forward of these rows; None, where no text was fed, changes nothing."""
        if logits is not None:
            self._newest = (list(rows), logits)
            self._by_row.update(zip(rows, logits, strict=True))

    def of(self, live: Sequence[DecodedRow]) -> torch.Tensor:
        """`[N, V]` of the live rows, without a copy where they were fed in this very order."""
        rows, logits = self._newest
        if rows == live:
            return logits
        return torch.stack([self._by_row[row] for row in live])

    def drop(self, row: DecodedRow) -> None:
        """Forgets a finished row."""
        self._by_row.pop(row, None)
