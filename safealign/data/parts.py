"""Which rows of a source are for training and which for tests, where one source has to serve both."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from safealign.data.readers import pair_of
from safealign.data.records import Record
from safealign.errors import DataError

PARTS = ("all", "train", "test")
# Share of each source that is kept for tests; a matched pair stays together.
TEST_SHARE = {"overrefusal": 0.5, "alpaca": 0.4, "matched_pairs": 0.2, "rho_refusal_pairs": 0.2}
_DEFAULT_SHARE = 0.2


def take_part(records: Iterable[Record], part: str, source: str) -> list[Record]:
    """The records of one part; which rows these are depends on their pair or id alone, never on order or seed.

    Raises DataError for an unknown part or for records without an id.
    """
    if part not in PARTS:
        raise DataError(f"data part {part!r} of {source} is unknown: use one of {', '.join(PARTS)}")
    if part == "all":
        return list(records)
    share = TEST_SHARE.get(source, _DEFAULT_SHARE)
    return [record for record in records if (_place(record, source) < share) == (part == "test")]


def interleave(lists: Sequence[Sequence[Record]]) -> list[Record]:
    """Round-robin over lists, so that a prefix of the result holds something of each."""
    longest = max(map(len, lists), default=0)
    return [rows[i] for i in range(longest) for rows in lists if i < len(rows)]


def _place(record: Record, source: str) -> float:
    """A number in [0, 1) that never changes for this row."""
    name = pair_of(record) or record.id
    if not name:
        raise DataError(f"{record.where or source}: a row needs an id to be split into train and test")
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32
