"""Several examples in one row of tokens, with all their safety rows: no padding, and rows of about one length."""

from __future__ import annotations

import random
from collections.abc import Sequence

from safealign.layout import pack_layouts
from safealign.training.examples import IGNORED, Example


def pack_examples(examples: Sequence[Example], row_length: int, seed: int) -> list[Example]:
    """Rows of at most `row_length` rows, text and safety (a longer example has one to itself), drawn from `seed`.

    Each example goes into the fullest row that holds it; which ones meet is a matter of chance. Their ids are joined.
    """
    order = list(examples)
    random.Random(f"packing/{seed}").shuffle(order)
    rows: list[list[Example]] = []
    room: list[int] = []
    for example in order:
        fitting = [i for i, left in enumerate(room) if left >= example.n_tokens]
        at = min(fitting, key=lambda i: room[i], default=len(rows))
        if at == len(rows):
            rows.append([])
            room.append(row_length)
        rows[at].append(example)
        room[at] -= example.n_tokens
    return [packed(row) for row in rows]


def packed(examples: Sequence[Example]) -> Example:
    """One example made of several; the first token of each is nobody's target."""
    first = examples[0]
    return Example(
        id=" + ".join(example.id for example in examples),
        input_ids=tuple(i for example in examples for i in example.input_ids),
        labels=tuple(label for example in examples for label in (IGNORED, *example.labels[1:])),
        layout=pack_layouts([example.layout for example in examples]),
        category=first.category if len(examples) == 1 else "none",
        token_labels=tuple(label for example in examples for label in _token_labels(example)),
    )


def _token_labels(example: Example) -> tuple[int, ...]:
    return example.token_labels or (IGNORED,) * len(example.input_ids)
