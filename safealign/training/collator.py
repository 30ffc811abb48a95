"""Batches of examples: text padded on the right, safety rows and their mask beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from safealign.layout.collate import collate_layouts
from safealign.modeling.texts import pad_ids
from safealign.training.examples import IGNORED, Example

EXAMPLE_KEY, LENGTH_KEY = "example", "length"


class SafetyCollator:
    """Looks examples up by the dataset's `example` column and collates ids, labels and layouts.

    Returns `input_ids`, `labels`, `attention_mask` `[B, T]` and the `safety_*` tensors of `SafetyBatch`.
    """

    def __init__(self, examples: Sequence[Example], pad_token_id: int) -> None:
        self.examples = examples
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        numbers = [row[EXAMPLE_KEY] for row in rows]
        return collate_examples([self.examples[number] for number in numbers], numbers, self.pad_token_id)


def collate_examples(chosen: Sequence[Example], numbers: Sequence[int], pad_token_id: int) -> dict[str, torch.Tensor]:
    """The batch of `SafetyCollator`; `numbers` name the examples in what is gathered of their verdicts."""
    batch = text_and_safety(chosen, pad_token_id)
    batch["labels"] = pad_ids([example.labels for example in chosen], IGNORED)
    batch["safety_example"] = torch.tensor(numbers)
    return batch


def text_and_safety(examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
    """`input_ids`, `attention_mask` `[B, T]` and the `safety_*` tensors of the examples' layouts."""
    input_ids = pad_ids([example.input_ids for example in examples], pad_token_id)
    lengths = torch.tensor([len(example.input_ids) for example in examples])
    mask = (torch.arange(input_ids.shape[1])[None] < lengths[:, None]).long()
    safety = collate_layouts([example.layout for example in examples], input_ids.shape[1]).as_dict()
    return {"input_ids": input_ids, "attention_mask": mask, **safety}
