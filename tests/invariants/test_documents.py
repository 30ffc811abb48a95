"""Raw documents, alone and packed: each is a world of its own, and its verdict sees all of it."""

from __future__ import annotations

import torch

from safealign.layout import document_layout
from safealign.layout.collate import collate_layouts

DOCUMENTS = (
    "The sea is wide and cold.",
    "Go on then.",
    "A kite is made of paper, two sticks and a long string; wait for the wind.",
)
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def _ids(model) -> list[list[int]]:
    return [model.renderer.content_ids(text) for text in DOCUMENTS]


def _packed(model, ids: list[list[int]], placement: str):
    layout = document_layout([len(one) for one in ids], [0.0] * len(ids), placement)
    return model.forward([sum(ids, [])], [layout])[0]


def test_text_logits_are_those_of_the_same_weights_without_safety_rows(model, placement: str) -> None:
    for ids in _ids(model):
        seen = _packed(model, [ids], placement)
        torch.testing.assert_close(seen.lm, model.plain(ids).logits[0], **CLOSE)


def test_every_token_of_a_document_changes_its_verdict(model, placement: str) -> None:
    ids = _ids(model)[0]
    verdict = _packed(model, [ids], placement).verdicts[0]
    for row in range(len(ids)):
        changed = [*ids[:row], ids[row] + 1, *ids[row + 1 :]]
        assert (_packed(model, [changed], placement).verdicts[0] - verdict).abs() > 1e-4, row


def test_packed_documents_are_what_they_are_alone(model, placement: str) -> None:
    ids = _ids(model)
    packed, start = _packed(model, ids, placement), 0
    for number, one in enumerate(ids):
        alone = _packed(model, [one], placement)
        torch.testing.assert_close(packed.lm[start : start + len(one)], alone.lm, **CLOSE)
        torch.testing.assert_close(packed.verdicts[number], alone.verdicts[0], **CLOSE)
        start += len(one)


def test_a_changed_token_changes_nothing_in_other_documents(model, placement: str) -> None:
    ids = _ids(model)
    before = _packed(model, ids, placement)
    changed = [ids[0], [ids[1][0] + 1, *ids[1][1:]], ids[2]]
    after = _packed(model, changed, placement)
    first, last = len(ids[0]), len(ids[0]) + len(ids[1])
    torch.testing.assert_close(after.lm[:first], before.lm[:first], atol=0, rtol=0)
    torch.testing.assert_close(after.lm[last:], before.lm[last:], atol=0, rtol=0)
    assert torch.equal(after.verdicts[[0, 2]], before.verdicts[[0, 2]])
    assert (after.verdicts[1] - before.verdicts[1]).abs() > 1e-4


def test_rows_of_different_numbers_of_documents_share_a_batch(model, placement: str) -> None:
    ids = _ids(model)
    rows = [ids[:1], ids[1:]]
    layouts = [document_layout([len(one) for one in row], [1.0] * len(row), placement) for row in rows]
    found = model.forward([sum(row, []) for row in rows], layouts)
    for row, seen in zip(rows, found, strict=True):
        alone = _packed(model, row, placement)
        torch.testing.assert_close(seen.lm, alone.lm, **CLOSE)
        torch.testing.assert_close(seen.verdicts, alone.verdicts, **CLOSE)


def test_a_position_counts_within_its_document(placement: str) -> None:
    batch = collate_layouts([document_layout([3, 2], [None, 1.0], placement)])
    ends = [3, 2] if placement == "append" else [0, 0]
    assert batch.position_ids[0].tolist() == [0, 1, 2, 0, 1, *ends]
    assert batch.labels[0].tolist() == [-100.0, 1.0]
    allowed = (batch.mask[0, 0] == 0).int().tolist()
    assert allowed == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0],
        [1, 1, 1, 0, 0, 1, 0],
        [0, 0, 0, 1, 1, 0, 1],
    ]
