"""The head's table: each row at its own threshold, baselines that learn, wrapped sets of both labels."""

from __future__ import annotations

import pytest
import torch

from safealign.data.records import BENIGN, MALICIOUS
from safealign.data.wrapping import Template
from safealign.evaluation.head_table import (
    HeadSets,
    cached,
    head_grid,
    head_row,
    linear_baseline,
    prototype_baseline,
    wrapped_set,
)


def _sets(kit, **changes) -> HeadSets:
    bad, good = kit.prompts(8, MALICIOUS), kit.prompts(12)
    chosen = {
        "harmful": bad,
        "benign": good[:6],
        "over_refusal": good[6:],
        "pairs": [*bad[:2], *good[:2]],
        "everyday": good,
        "wrapped": [*bad[2:4], *good[2:4]],
    }
    return HeadSets(**{**chosen, **changes})


def _oracle(records) -> torch.Tensor:
    return torch.tensor([float(record.label == MALICIOUS) + 0.01 * len(record.request) for record in records])


def test_a_perfect_score_gives_perfect_columns_and_no_false_alarm(kit) -> None:
    row = head_row(_oracle, _sets(kit), 0.5)
    assert set(row) == {"benign", "over_refusal", "pairs", "wrapped", "everyday"}
    assert all(row[key].value == 1.0 for key in ("benign", "over_refusal", "pairs", "wrapped"))
    assert row["everyday"].value == 0.0 and row["everyday"].n == 12


def test_empty_sets_leave_their_columns_out(kit) -> None:
    row = head_row(_oracle, _sets(kit, wrapped=[], pairs=[], over_refusal=[]), None)
    assert set(row) == {"benign"}
    shown = head_grid({"one": row}).to_markdown()
    assert "–" in shown and "one" in shown


def test_a_linear_baseline_learns_from_features_and_ignores_what_has_no_label(kit) -> None:
    from dataclasses import replace

    requests = [*kit.prompts(10, MALICIOUS), *kit.prompts(10), replace(kit.prompts(1)[0], label=None)]
    seen: list[int] = []

    def features(records) -> torch.Tensor:
        seen.append(len(records))
        return torch.stack([torch.tensor([float("misdeed" in r.request), 1.0]) for r in records])

    score = linear_baseline(features, requests, penalty=0.01)
    assert seen == [20]
    assert float(score(kit.prompts(1, MALICIOUS))[0]) > 0 > float(score(kit.prompts(1))[0])


def test_prototypes_learn_from_features_alike(kit) -> None:
    from dataclasses import replace

    requests = [*kit.prompts(10, MALICIOUS), *kit.prompts(10), replace(kit.prompts(1)[0], label=None)]

    def features(records) -> torch.Tensor:
        return torch.stack([torch.tensor([float("misdeed" in r.request), float(r.request[-1])]) for r in records])

    score = prototype_baseline(features, requests)
    assert float(score(kit.prompts(1, MALICIOUS))[0]) > 0 > float(score(kit.prompts(1))[0])


def test_features_are_computed_once_for_each_text(kit) -> None:
    asked: list[int] = []

    def features(records) -> torch.Tensor:
        asked.append(len(records))
        return torch.tensor([[float(len(r.request))] for r in records])

    look = cached(features)
    first = look(kit.prompts(3))
    assert torch.equal(look(kit.prompts(3)), first)
    assert asked == [3]


def test_wrapped_sets_wrap_both_labels_in_the_same_templates(kit) -> None:
    template = Template("box", "In a box: {{ prompt }} End of the box.")
    found = wrapped_set(kit.prompts(4, MALICIOUS), kit.prompts(4), [template], 3)
    labels = [record.label for record in found]
    assert labels.count(MALICIOUS) == labels.count(BENIGN) == 3
    assert all(record.request.startswith("In a box: ") for record in found)
    assert wrapped_set([], kit.prompts(2), [template], 3) == []
    assert wrapped_set(kit.prompts(2, MALICIOUS), kit.prompts(2), [template], 0) == []


def test_nan_scores_are_refused(kit) -> None:
    with pytest.raises(ValueError, match="nan"):
        head_row(lambda records: torch.full((len(records),), float("nan")), _sets(kit), 0.5)
