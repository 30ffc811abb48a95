"""From candidate answers to lists of states: repeats taken out, labelled, read behind one and the same instruction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from safealign.data.records import Record
from safealign.data.rendering import Renderer
from safealign.modeling.feature_cache import FeatureCache
from safealign.modeling.hidden import HiddenExtractor
from safealign.modeling.texts import Text
from safealign.ranking.candidates import DECLINED, PREFILLED
from safealign.ranking.labels import Judge
from safealign.ranking.lists import StateList

Counts = dict[str, int]


@dataclass(frozen=True)
class Candidates:
    """Different answers to one request, and which of them are good."""

    answers: tuple[Record, ...]
    good: tuple[bool, ...]

    @property
    def first(self) -> Record:
        """One of the answers, for what they share: the request, its label, its source."""
        return self.answers[0]

    @property
    def unaided(self) -> tuple[int, ...]:
        """Indices of the answers that were given no opening."""
        ways = [(record.id or "").rpartition("#")[2].rpartition("-")[0] for record in self.answers]
        return tuple(index for index, way in enumerate(ways) if way not in (PREFILLED, DECLINED))

    @property
    def request_id(self) -> str:
        """Id of the request."""
        return request_id(self.first)


def request_id(answer: Record) -> str:
    """Id of the request that a candidate answers."""
    return (answer.id or "").rpartition("#")[0]


def group(records: Sequence[Record], judge: Judge) -> tuple[list[Candidates], Counts]:
    """Candidates by request, and what was left out: repeats, answers of no known kind, lists without both kinds.

    The request of a list with answers of one kind alone teaches no choice.
    """
    by_request: dict[str, dict[str, Record]] = {}
    counts: Counter[str] = Counter(answers=len(records))
    for record in records:
        known = by_request.setdefault(request_id(record), {})
        words = " ".join((record.response or "").split())
        counts["repeats"] += words in known
        known.setdefault(words, record)
    counts["requests"] = len(by_request)
    found = []
    for known in by_request.values():
        labelled = [(record, good) for record in known.values() if (good := judge(record)) is not None]
        counts["unlabelled"] += len(known) - len(labelled)
        kinds = {good for _, good in labelled}
        if len(kinds) == 2:
            found.append(Candidates(tuple(r for r, _ in labelled), tuple(good for _, good in labelled)))
        counts[_FATE[frozenset(kinds)]] += 1
    return found, dict(counts)


_FATE = {
    frozenset({True, False}): "lists",
    frozenset({True}): "dropped: all good",
    frozenset({False}): "dropped: none good",
    frozenset[bool](): "dropped: no answer left",
}


def read_states(
    groups: Sequence[Candidates],
    extractor: HiddenExtractor,
    renderer: Renderer,
    *,
    cache: FeatureCache | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[torch.Tensor]:
    """`[1 + m, pools, depths, H]` of each request and its answers, all behind the plain request."""
    texts: list[Text] = []
    for one in groups:
        prompt = renderer.render(one.first.prompt)
        texts.append(Text.prompt(prompt))
        texts += [Text.answer(prompt, renderer.content_ids(r.response or "")) for r in one.answers]
    found = iter(extractor.read(texts, cache=cache, progress=progress))
    return [torch.cat([next(found) for _ in range(1 + len(one.answers))]) for one in groups]


def as_list(one: Candidates, states: torch.Tensor, pool: int = 0, depth: int = 0) -> StateList:
    """The list that a ranker sees: `states` as `read_states` gives them, at one pool and depth (by index)."""
    chosen = states[:, pool, depth].float()
    request = one.first
    source = (request.source or "").partition("+")[0]
    label, good = str(request.label), torch.tensor(one.good)
    return StateList(chosen[0], chosen[1:], good, label, source, one.request_id, one.unaided)
