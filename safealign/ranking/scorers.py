"""Who chooses among answers: the ranker, our safety head, or nobody (a random pick)."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from safealign.config.fields import suggestion
from safealign.decoding import RowSettings
from safealign.errors import ConfigError
from safealign.layout import Rendered, Span, build_layout, window_row
from safealign.modeling.attach import SafetyParts
from safealign.modeling.features import layout_logits
from safealign.modeling.hidden import HiddenExtractor, evaluating
from safealign.ranking.network import Ranker

SRR, HEAD, RANDOM = "srr", "head", "random"
SCORERS = (SRR, HEAD, RANDOM)
Answers = Sequence[Sequence[int]]


class Scorer(Protocol):
    """Scores answers to one request; the highest is chosen."""

    @property
    def extractor(self) -> HiddenExtractor | None:
        """What it reads of the instruction and of each answer; None for who needs no states."""
        ...

    def scores(self, prompt: Rendered, answers: Answers, states: torch.Tensor | None) -> list[float]:
        """A score for each answer (token ids behind `prompt`, an end of turn left out).

        `states` `[1 + m, pools, depths, H]`: what the extractor reads of the instruction, then of the answers.
        """
        ...


class RankerScorer:
    """The trained ranker: cosines in [-1, 1]."""

    def __init__(self, ranker: Ranker, lm: Any) -> None:
        self.ranker = ranker
        self.extractor: HiddenExtractor | None = reader(lm, ranker)

    def scores(self, prompt: Rendered, answers: Answers, states: torch.Tensor | None) -> list[float]:
        """A cosine for each answer."""
        assert states is not None
        return self.ranker.scores(states.flatten(1))


class HeadScorer:
    """The safety head: minus the highest logit of harm among the windows of `length` tokens that tile an answer.

    An answer of no tokens says nothing and comes last.
    """

    extractor: HiddenExtractor | None = None

    def __init__(self, parts: SafetyParts, rows: RowSettings, length: int) -> None:
        self.parts, self.rows, self.length = parts, rows, length

    def scores(self, prompt: Rendered, answers: Answers, states: torch.Tensor | None) -> list[float]:
        """A logit for each answer, in a forward of its own over prompt and answer."""
        behind = [_behind(prompt, tokens) for tokens in answers]
        layouts = [build_layout(text, self._windows(text), gate=False, versions=()) for text in behind]
        asked = [index for index, layout in enumerate(layouts) if layout.safety]
        with evaluating(self.parts.lm):
            found = layout_logits(
                self.parts, [behind[i].input_ids for i in asked], [layouts[i] for i in asked], max(1, len(asked))
            )
        harm = dict(zip(asked, found, strict=True))
        return [-float(harm[i].max()) if i in harm else -torch.inf for i in range(len(answers))]

    def _windows(self, text: Rendered) -> list[Any]:
        first, end = text.response
        starts = range(first, end, self.length)
        how = {"placement": self.rows.placement, "sees_query": self.rows.window_sees_query}
        return [window_row(text, start, min(start + self.length, end), **how) for start in starts]  # type: ignore[arg-type]


class RandomScorer:
    """A random pick, the same one whenever the same answers are given."""

    extractor: HiddenExtractor | None = None

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def scores(self, prompt: Rendered, answers: Answers, states: torch.Tensor | None) -> list[float]:
        """Numbers in [0, 1)."""
        content = repr([self.seed, tuple(prompt.input_ids), [tuple(tokens) for tokens in answers]])
        rng = random.Random(hashlib.sha256(content.encode()).digest())
        return [rng.random() for _ in answers]


def make_scorer(
    name: Any, lm: Any, ranker: Ranker | None, parts: SafetyParts | None, rows: RowSettings, r2: int
) -> Scorer:
    """The scorer `name` of a model; an object that scores is taken as it is.

    `r2`: length of the windows that the head was trained on. Raises ConfigError for an unknown name, or one whose part
    the model lacks.
    """
    if callable(getattr(name, "scores", None)) and hasattr(name, "extractor"):
        found: Scorer = name
        return found
    if not isinstance(name, str) or name not in SCORERS:
        hint = suggestion(name, SCORERS) if isinstance(name, str) else f"; choose one of {', '.join(SCORERS)}"
        raise ConfigError(f"ranker: there is no {name!r}{hint}")
    if name == RANDOM:
        return RandomScorer()
    if name == HEAD:
        if parts is None:
            raise ConfigError("ranker='head': this model has no safety head; load an export that has one")
        return HeadScorer(parts, rows, r2)
    if ranker is None:
        raise ConfigError(
            "ranker='srr': this model carries no ranker; make one with python -m safealign.train +recipe=srr "
            "model.path=EXPORT, or choose ranker='head' or 'random'"
        )
    return RankerScorer(ranker, lm)


def reader(lm: Any, ranker: Ranker) -> HiddenExtractor:
    """The extractor that reads what the ranker was trained on. Raises ConfigError for states of another width."""
    extractor = HiddenExtractor(lm, (ranker.settings.layer,), (ranker.settings.pool,))
    width = extractor.shape[-1]
    if width != ranker.width:
        raise ConfigError(f"the ranker reads states of {ranker.width} values, and this model's have {width}: train one")
    return extractor


def _behind(prompt: Rendered, tokens: Sequence[int]) -> Rendered:
    ids = (*prompt.input_ids, *tokens)
    return Rendered(ids, prompt.query_end, prompt.content, Span(prompt.query_end + 1, len(ids)))
