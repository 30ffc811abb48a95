"""Fits the token head: a linear read-out of each generated token's own state, on the answers' labelled tokens.

It is fitted once the model stands still, on its final states: the optimum of what joint training could reach with a
head that moves nothing but itself. Cheap to read and quick to stir, it only decides where the safety token looks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from safealign.judges.linear import ITERATIONS, PENALTY_PER_TEXT, LogisticProbe
from safealign.modeling.attach import SafetyParts
from safealign.modeling.feature_cache import FeatureCache
from safealign.modeling.hidden import HiddenExtractor
from safealign.modeling.safety_token import SafetyHead
from safealign.modeling.texts import Text
from safealign.training.examples import IGNORED, Example

_PER_ANSWER = 12  # labelled tokens read of each answer, evenly spaced: neighbours say the same


def fit_token_head(
    parts: SafetyParts,
    answered: Sequence[Example],
    *,
    penalty: float = PENALTY_PER_TEXT,
    autocast: torch.dtype | None = None,
    cache: FeatureCache | None = None,
) -> bool:
    """Fits the head on tokens of `answered`; False, and nothing changed, where there is none or a label is missing.

    Tokens are read with the gate closed, as the windows' read-out is. Both labels weigh the same in all; `penalty`
    is the L2 per text.
    """
    head = parts.token_head
    chosen = [(example, rows) for example in answered if (rows := labelled_rows(example))]
    if head is None or not chosen:
        return False
    labels = torch.tensor([float(example.token_labels[row]) for example, rows in chosen for row in rows])
    if len(labels.unique()) < 2:
        return False
    states = read_tokens(HiddenExtractor.of_token_head(parts), chosen, autocast, cache)
    fit_linear(head, states, labels, penalty * len(chosen))
    return True


def read_tokens(
    extractor: HiddenExtractor,
    chosen: Sequence[tuple[Example, Sequence[int]]],
    autocast: torch.dtype | None = None,
    cache: FeatureCache | None = None,
) -> torch.Tensor:
    """States `[N, depths · H]` at the rows chosen of each example, in order."""
    texts = [Text.at_rows(example.input_ids, rows) for example, rows in chosen]
    device = extractor.device.type
    with torch.autocast(device, dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        return torch.cat(extractor.read(texts, cache=cache)).flatten(1)


def fit_linear(head: SafetyHead, features: torch.Tensor, labels: torch.Tensor, l2: float) -> None:
    """Standardises the head on `features` and loads the regression's solution."""
    head.standardise_on(features)
    probe = LogisticProbe(head.mean[0], head.scale[0])
    share = labels.mean()
    weights = torch.where(labels > 0, 0.5 / share, 0.5 / (1.0 - share)).double()
    probe.fit(features, labels, weights, l2=l2, max_iter=ITERATIONS)
    head.set_linear(probe.weight.float(), float(probe.bias))


def labelled_rows(example: Example) -> list[int]:
    """The rows read of an answer: at most about twelve of its labelled tokens, evenly spaced."""
    rows = [row for row, label in enumerate(example.token_labels) if label != IGNORED]
    step = max(1, len(rows) // _PER_ANSWER)
    return rows[step - 1 :: step]
