"""Packed fine-tuning examples: the same losses, gradients and verdicts as one example a row, and nothing lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safealign.layout import pack_layouts
from safealign.layout.masks import build
from safealign.modeling.features import layout_logits
from safealign.training.examples import IGNORED, Example
from safealign.training.packing_examples import pack_examples, packed
from safealign.training.safety_loss import SafetyObjective

OBJECTIVE = SafetyObjective(lambda_cls=0.7, pos_weight=2.0, label_smoothing=0.1)


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_a_packed_row_trains_as_its_examples_do(kit: Any, tmp_path: Path, architecture: str) -> None:
    """Gate open and closed, windows that write the slot and recoveries among them."""
    examples = kit.examples(kit.every_pairing())[:8]
    rows = [packed(examples[:3]), packed(examples[3:])]
    assert any(version > 0 for example in examples for version in example.layout.sees)
    how = {"max_steps": 2, "architecture": architecture}
    alone, together = (
        _run(kit, tmp_path, chosen, per_device_train_batch_size=len(chosen), **how) for chosen in (examples, rows)
    )
    assert together.losses == pytest.approx(alone.losses, abs=2e-5)
    for found, expected in zip(together.gradients, alone.gradients, strict=True):
        assert expected["safety_head.linear.weight"].any() and expected["safety_token.weight"].any()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=2e-5, rtol=1e-4)


def test_verdicts_do_not_depend_on_what_an_example_is_packed_with(kit: Any) -> None:
    _, parts = kit.safe_model()
    examples = kit.examples(kit.every_pairing())[:4]
    row = packed(examples)
    alone = layout_logits(parts, [e.input_ids for e in examples], [e.layout for e in examples])
    (together,) = layout_logits(parts, [row.input_ids], [row.layout])
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_no_text_row_sees_another_example(kit: Any) -> None:
    examples = kit.examples(kit.every_pairing())[:4]
    layout = packed(examples).layout
    seen = build([layout])[0, 0] == 0
    owners = [number for number, example in enumerate(examples) for _ in example.input_ids]
    owners += [number for number, example in enumerate(examples) for _ in example.layout.safety]
    whose = torch.tensor(owners)
    assert not (seen & (whose[:, None] != whose[None, :])).any()
    for number, example in enumerate(examples):
        own = whose == number
        assert torch.equal(seen[own][:, own], build([example.layout])[0, 0] == 0)


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30), room=st.integers(1, 60), seed=st.integers(0, 9))
def test_packing_loses_and_invents_nothing(kit: Any, lengths: list[int], room: int, seed: int) -> None:
    base = kit.examples(kit.every_pairing())[0]
    bare = pack_layouts([base.layout])
    made = [_example(base, f"{number}", length) for number, length in enumerate(lengths)]
    rows = pack_examples(made, room, seed)
    assert bare.n_text == base.layout.n_text
    assert sorted(i for row in rows for i in row.id.split(" + ")) == sorted(example.id for example in made)
    assert all(row.n_tokens <= room or len(row.layout.blocks) == 1 for row in rows)
    for row in rows:
        assert all(row.labels[block.start] == IGNORED for block in row.layout.blocks)
        assert len(row.token_labels) == len(row.input_ids) == len(row.labels) == row.layout.n_text
    assert [row.id for row in pack_examples(made, room, seed)] == [row.id for row in rows]


def test_nothing_and_what_is_packed_already_are_refused(kit: Any) -> None:
    layout = kit.examples(kit.every_pairing())[0].layout
    for given_layouts in ([], [pack_layouts([layout])]):
        with pytest.raises(ValueError, match="packing takes"):
            pack_layouts(given_layouts)


def _example(base: Example, id_: str, length: int) -> Example:
    layout = base.layout.__class__(length, (), (-1,) * length, length - 1)
    return Example(id_, tuple(range(3, 3 + length)), tuple(range(3, 3 + length)), layout, "none")


def _run(kit: Any, folder: Path, examples: list[Example], **how: Any) -> Any:
    torch.manual_seed(0)
    return kit.run(kit.safe_trainer(folder, examples, OBJECTIVE, **how))
