"""The token head: fitted on labelled tokens, it tells them apart, and nothing else of the model moves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from safealign.layout import Layout
from safealign.modeling.attach import SafetyParts, attach
from safealign.modeling.hidden import HiddenExtractor
from safealign.modeling.safety_token import HeadSettings
from safealign.modeling.tiny import tiny_model
from safealign.training.examples import IGNORED, Example
from safealign.training.token_head import fit_token_head, read_tokens

PROMPT = 4


@pytest.fixture
def parts() -> SafetyParts:
    return attach(tiny_model(), HeadSettings((0.5,), token_layers=(0.5, 1.0)))


def _examples(n: int = 40) -> list[Example]:
    """Answers whose harmful tokens are drawn from another part of the vocabulary."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for index in range(n):
        labels = [int(torch.rand((), generator=generator) < 0.5) for _ in range(8)]
        draw = [int(torch.randint(10, 16, (), generator=generator)) + 100 * label for label in labels]
        ids = (1, 2, 3, 4, *draw)
        layout = Layout(len(ids), (), (-1,) * len(ids), PROMPT - 1)
        found.append(Example(str(index), ids, ids, layout, "none", (*([IGNORED] * PROMPT), *labels)))
    return found


def _rows(example: Example) -> list[int]:
    return list(range(PROMPT, len(example.input_ids)))


def test_it_tells_labelled_tokens_apart_on_unseen_answers(parts: SafetyParts) -> None:
    examples = _examples(120)
    before = {name: value.clone() for name, value in parts.lm.state_dict().items()}
    assert fit_token_head(parts, examples[:90], penalty=0.01)
    changed = {name for name, value in parts.lm.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("safety_token_head.") for name in changed)
    chosen = [(example, _rows(example)) for example in examples[90:]]
    head: Any = parts.token_head
    logits = head(read_tokens(HiddenExtractor.of_token_head(parts), chosen))
    labels = torch.tensor([example.token_labels[row] for example, rows in chosen for row in rows])
    assert ((logits > 0) == (labels > 0)).float().mean() > 0.9


@pytest.mark.parametrize("label", [0, 1, IGNORED])
def test_one_label_alone_changes_nothing(parts: SafetyParts, label: int) -> None:
    examples = [
        replace(e, token_labels=(*([IGNORED] * PROMPT), *([label] * (len(e.input_ids) - PROMPT)))) for e in _examples(6)
    ]
    assert not fit_token_head(parts, examples)
    assert not parts.token_head.linear.weight.any()  # type: ignore[union-attr]


def test_a_model_without_one_is_left_alone() -> None:
    assert not fit_token_head(attach(tiny_model(), HeadSettings()), _examples(4))
