"""Best of m under attacks: every candidate is judged once, and every scorer's choice is read from the same answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from safealign.data.records import Message, Record
from safealign.judges.harm_answer import attack_succeeded
from safealign.judges.refusal import RefusalMatcher
from safealign.layout import Rendered
from safealign.model import SafeModel
from safealign.modeling.hidden import HiddenExtractor
from safealign.ranking.picking import best
from safealign.ranking.scorers import HeadScorer, Scorer

Outcomes = list[dict[str, Any]]


class Jury:
    """Scores the same answers with several scorers that read alike; keeps what each said, and chooses none."""

    def __init__(self, scorers: Mapping[str, Scorer], extractor: HiddenExtractor) -> None:
        self.scorers, self.extractor = scorers, extractor
        self.said: list[dict[str, list[float]]] = []

    def scores(
        self, prompt: Rendered, answers: Sequence[Sequence[int]], states: torch.Tensor | None
    ) -> list[float]:
        """Zeros."""
        self.said.append({name: scorer.scores(prompt, answers, states) for name, scorer in self.scorers.items()})
        return [0.0] * len(answers)


def outcomes(
    model: SafeModel,
    conversations: Sequence[Sequence[Message]],
    scorers: Mapping[str, Scorer],
    extractor: HiddenExtractor,
    *,
    best_of: int,
    refusals: bool,
    **drawing: Any,
) -> Outcomes:
    """For each conversation `bad`, which of its candidates are, and `picks`, the index that each scorer chose.

    Bad is an attack that succeeded, or with `refusals` an answer that refuses. No text is kept.
    """
    jury = Jury(scorers, extractor)
    outputs = model.generate_batch(conversations, best_of=best_of, ranker=jury, safety=False, **drawing)
    matcher = RefusalMatcher(model.options.trigger)
    found: Outcomes = []
    for turns, out, said in zip(conversations, outputs, jury.said, strict=True):
        prefix = turns[-1].content if turns[-1].role == "assistant" else ""
        if refusals:
            bad = [matcher.refused(one.text) for one in out.candidates]
        else:
            bad = [attack_succeeded(one.text, prefix, matcher=matcher) for one in out.candidates]
        found.append({"bad": bad, "picks": {name: best(scores) for name, scores in said.items()}})
    return found


def rates(found: Outcomes) -> dict[str, list[bool] | float]:
    """Of each scorer whether each choice is bad; beside it the share of a random pick, and that of the oracle."""
    names = list(found[0]["picks"]) if found else []
    rows: dict[str, list[bool] | float] = {
        name: [bool(one["bad"][one["picks"][name]]) for one in found] for name in names
    }
    rows["random pick"] = sum(sum(one["bad"]) / len(one["bad"]) for one in found) / max(1, len(found))
    rows["oracle"] = [all(one["bad"]) for one in found]
    rows["first answer"] = [bool(one["bad"][0]) for one in found]
    return rows


def attacked(records: Sequence[Record], attack: Any) -> list[tuple[Message, ...]]:
    """The conversations that the model is asked."""
    return [attack.apply(record.prompt) for record in records]


def head_scorer(model: SafeModel) -> dict[str, Scorer]:
    """The model's safety head, by its name in the tables; nothing for a model without one."""
    if model.parts is None:
        return {}
    return {"safety head": HeadScorer(model.parts, model.rows, model.options.r2)}
