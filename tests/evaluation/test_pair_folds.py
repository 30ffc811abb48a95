"""Folds of contrast pairs: nothing of a pair is ever on both sides, and left-out sources are out whole."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from safealign.data.records import BENIGN, MALICIOUS, Message, Record
from safealign.evaluation.head_table import fold_row
from safealign.evaluation.pair_folds import fold_auroc, left_out_auroc


def _pairs(source: str, n: int) -> list[Record]:
    return [
        Record((Message("user", f"{source} {i} {side}"),), label, id=f"{source}/{i}#{side}", source=source)
        for i in range(n)
        for side, label in (("harmful", MALICIOUS), ("benign", BENIGN))
    ]


def _restyled(record: Record) -> Record:
    return Record((Message("user", f"please: {record.request}"),), record.label, id=f"{record.id}#polite")


class _Spy:
    """A fit that remembers what it was given and scores by the label, so that AUROC is 1."""

    def __init__(self) -> None:
        self.trained: list[set[str]] = []
        self.tested: list[set[str]] = []

    def __call__(self, requests: Sequence[Record]) -> object:
        self.trained.append({str(record.id) for record in requests})
        assert len(requests) == len(self.trained[-1])

        def score(records: Sequence[Record]) -> torch.Tensor:
            self.tested.append({str(record.id) for record in records})
            return torch.tensor([float(record.label == MALICIOUS) for record in records])

        return score


def test_every_pair_is_scored_once_by_a_head_that_saw_no_version_of_it() -> None:
    pairs = [*_pairs("one", 6), *_pairs("two", 4)]
    other = Record((Message("user", "other"),), BENIGN, id="other-1")
    requests = [*pairs[:12], *map(_restyled, pairs[:12]), other]
    spy = _Spy()
    assert fold_auroc(spy, requests, pairs).value == 1.0
    assert sorted(name for fold in spy.tested for name in fold) == sorted(str(record.id) for record in pairs)
    for trained, tested in zip(spy.trained, spy.tested, strict=True):
        families = {name.split("#")[0] for name in tested}
        assert not families & {name.split("#")[0] for name in trained}
        assert "other-1" in trained
        assert {str(record.id) for record in pairs} - tested <= trained


def test_a_left_out_source_is_out_with_all_that_derives_from_it() -> None:
    pairs = [*_pairs("one", 3), *_pairs("two", 3)]
    requests = [*pairs, *map(_restyled, pairs)]
    spy = _Spy()
    found = left_out_auroc(spy, requests, pairs)
    assert set(found) == {"one", "two"}
    for trained, tested in zip(spy.trained, spy.tested, strict=True):
        source = next(iter(tested)).split("/")[0]
        assert not any(name.startswith(source) for name in trained)


def test_the_table_shows_the_worst_left_out_source() -> None:
    pairs = [*_pairs("one", 5), *_pairs("two", 5)]

    def fit(requests: Sequence[Record]) -> object:
        knows_two = any(record.source == "two" for record in requests)
        return lambda rows: torch.tensor([float((r.label == MALICIOUS) == knows_two) for r in rows])

    row = fold_row(fit, pairs, pairs)
    assert row["pairs_folds"].value == 1.0 and row["pairs_left_out"].value == 0.0


def test_too_few_pairs_are_an_error() -> None:
    with pytest.raises(Exception, match="folds"):
        fold_auroc(_Spy(), [], _pairs("one", 2))
