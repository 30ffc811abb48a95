"""From preference records to pairs of examples, and batches of them: chosen answers first, rejected ones after.

Both sides carry windows and refresh rows labelled by what the pair says of each answer. The request's verdict is
the same on both sides, so row 0 is labelled on the chosen side alone; the slot is drawn once for the pair.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset

from safealign.data.preferences import Preference
from safealign.data.rendering import Renderer
from safealign.training.collator import EXAMPLE_KEY, LENGTH_KEY, text_and_safety
from safealign.training.examples import Example, ExampleSettings, build_side, draw_slot

REFERENCE_KEYS = ("ref_chosen_logps", "ref_rejected_logps")


@dataclass(frozen=True)
class PairExample:
    """Two sequences with the same first `start` ids, the prompt; what follows is the answer."""

    chosen: Example
    rejected: Example
    start: int

    @property
    def sides(self) -> tuple[Example, Example]:
        """Chosen and rejected."""
        return self.chosen, self.rejected

    @property
    def n_tokens(self) -> int:
        """Text and safety rows that a forward of both sides computes."""
        return self.chosen.n_tokens + self.rejected.n_tokens


def build_pair_examples(
    preferences: Sequence[Preference], renderer: Renderer, settings: ExampleSettings, seed: int
) -> list[PairExample]:
    """Renders both sides of every pair, sorted by length.

    Left out is a pair whose prompt fills `max_length`, and one whose sides are the same ids once they are cut to it:
    neither is preferred.
    The order matters to the reference pass alone (training draws its own): it computes little padding that way.
    """
    found = [
        _pair(preference, renderer, settings, random.Random(f"{seed}/{index}/{preference.id}"))
        for index, preference in enumerate(preferences)
    ]
    answered = [pair for pair in found if all(len(side.input_ids) > pair.start for side in pair.sides)]
    fitting = [pair for pair in answered if pair.chosen.input_ids != pair.rejected.input_ids]
    return sorted(fitting, key=lambda pair: pair.n_tokens)


def _pair(preference: Preference, renderer: Renderer, settings: ExampleSettings, rng: random.Random) -> PairExample:
    slot = draw_slot(settings, rng)
    chosen, rejected = preference.sides
    # Where the answer begins, which is not everywhere where a prompt alone ends: templates may open those otherwise.
    start = renderer.render(chosen.messages, close=chosen.complete).response.start
    return PairExample(
        chosen=build_side(chosen, renderer, settings, rng, slot, judge_request=True),
        rejected=build_side(rejected, renderer, settings, rng, slot, judge_request=False),
        start=start,
    )


def pair_dataset(pairs: Sequence[PairExample], first: int = 0) -> Dataset:
    """A dataset in TRL's names; `example` counts from `first`. Its content is what the reference pass depends on."""
    return Dataset.from_dict(
        {
            "prompt_ids": [list(pair.chosen.input_ids[: pair.start]) for pair in pairs],
            "chosen_ids": [list(pair.chosen.input_ids[pair.start :]) for pair in pairs],
            "rejected_ids": [list(pair.rejected.input_ids[pair.start :]) for pair in pairs],
            LENGTH_KEY: [pair.n_tokens for pair in pairs],
            EXAMPLE_KEY: list(range(first, first + len(pairs))),
        }
    )


class PairCollator:
    """Looks pairs up by the dataset's `example` column; a batch of B pairs has 2B rows, chosen first.

    Returns `input_ids`, `attention_mask`, `completion_mask` `[2B, T]`, the reference's log-probabilities `[B]` where
    the dataset has them, and the `safety_*` tensors of `SafetyBatch`.
    """

    def __init__(self, pairs: Sequence[PairExample], pad_token_id: int) -> None:
        self.pairs = pairs
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pairs = [self.pairs[row[EXAMPLE_KEY]] for row in rows]
        batch = text_and_safety([*(p.chosen for p in pairs), *(p.rejected for p in pairs)], self.pad_token_id)
        starts = torch.tensor([pair.start for pair in pairs] * 2)
        answers = torch.arange(batch["input_ids"].shape[1])[None] >= starts[:, None]
        batch["completion_mask"] = batch["attention_mask"] * answers.long()
        batch["safety_example"] = torch.tensor([row[EXAMPLE_KEY] for row in rows] * 2)
        known = [key for key in REFERENCE_KEYS if key in rows[0]]
        return batch | {key: torch.tensor([row[key] for row in rows]) for key in known}
