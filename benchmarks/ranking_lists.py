"""Lists of candidate answers by data set, with their states at every depth and pool that is compared."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from safealign.config.roots import TrainConfig
from safealign.data.parts import take_part
from safealign.data.records import BENIGN, MALICIOUS, Record
from safealign.evaluation.sets import load_set
from safealign.model import SafeModel
from safealign.modeling.feature_cache import FeatureCache
from safealign.modeling.hidden import HiddenExtractor
from safealign.ranking import StateList
from safealign.ranking.candidates import sample_candidates
from safealign.ranking.reading import Candidates, Counts, as_list, group, read_states
from safealign.ranking.scorers import HeadScorer
from safealign.sampling import spread
from safealign.training.prepare import leak_guard
from safealign.training.ranker_data import candidate_folder, candidate_settings, encoder, judge, ways
from safealign.training.self_made import quick_copy
from safealign.training.sources import prompt_only
from safealign.training.splitting import distinct, families

DEPTHS = (0.1, 0.25, 0.4, 0.5, 0.6, 0.8, 1.0)
POOLS = ("last", "mean")
EVALUATED = "harmbench_test"  # the evaluation's own prompts: nothing else may repeat them
Say = Callable[[str], None]


@dataclass
class DataSet:
    """One data set's mixed lists: candidates, and states `[1 + m, pools, depths, H]` by `model`."""

    name: str
    groups: list[Candidates]
    states: list[torch.Tensor]
    counts: Counts
    depths: tuple[int, ...]
    model: SafeModel

    @cached_property
    def head(self) -> list[list[float]] | None:
        """The head's scores of every answer, as long to compute as all states are; None for a model without one."""
        return head_scores(self.model, self.groups)

    def lists(self, depth: int, pool: str, with_head: bool = False) -> list[StateList]:
        """What a ranker sees at `depth` (blocks); `with_head` adds the head's score to each answer's state."""
        at = self.depths.index(depth), POOLS.index(pool)
        found = [as_list(one, states, at[1], at[0]) for one, states in zip(self.groups, self.states, strict=True)]
        if not with_head or self.head is None:
            return found
        return [with_score(one, scores) for one, scores in zip(found, self.head, strict=True)]


def with_score(one: StateList, scores: Sequence[float]) -> StateList:
    """The list with a score as one more value of every answer's state, and 0 for the instruction."""
    column = torch.tensor(scores).clamp(min=-30.0, max=30.0)[:, None]
    return replace(
        one,
        instruction=torch.cat([one.instruction, torch.zeros(1)]),
        answers=torch.cat([one.answers, column], dim=1),
    )


def load_data_sets(
    config: TrainConfig, model: SafeModel, names: Mapping[str, str], counts: Mapping[str, int], say: Say
) -> dict[str, DataSet]:
    """`names`: data set → label of the requests taken from it, at most `counts` of that label from each."""
    lm: Any = model.hf if model.parts is None else model.parts.lm
    extractor = HiddenExtractor(lm, (*DEPTHS, config.ranker.layer), POOLS)
    labelled_by, settings, quick, found = judge(config), candidate_settings(config), quick_copy(lm), {}
    for name, label in names.items():
        requests = requests_of(name, label, counts[label], config, model)
        say(f"{name}: {settings.per_request} answers to each of {len(requests)} {label} requests")
        sampled = sample_candidates(
            quick, model.renderer, settings, requests, ways(config, model.renderer), folder=candidate_folder(), say=say
        )
        groups, left = group(sampled, labelled_by)
        states = read_states(groups, extractor, model.renderer, cache=FeatureCache(say=say))
        found[name] = DataSet(name, groups, states, left, extractor.depths, model)
        say(f"  {len(groups)} lists have both kinds: {left}")
    return found


def requests_of(name: str, label: str, count: int, config: TrainConfig, model: SafeModel) -> list[Record]:
    """Prompts of one label; of sources that serve tests as well, the training part."""
    records = [record for record in load_set(name, offline=config.offline) if record.label == label]
    if label == BENIGN:
        records = take_part([replace(r, id=r.id or f"{name}-{i}") for i, r in enumerate(records)], "train", name)
    if name != EVALUATED:
        records = leak_guard(config, encoder(config), lambda line: None).clean(records)
    asked = distinct([prompt_only(record) for record in records])
    fitting = [r for r in asked if len(model.renderer.render(r.prompt).input_ids) <= config.data.max_length]
    return [replace(r, id=r.id or f"{name}-{i}") for i, r in enumerate(spread(fitting, count))]


def head_scores(model: SafeModel, groups: Sequence[Candidates]) -> list[list[float]] | None:
    """The safety head's score of every answer; None for a model without one."""
    if model.parts is None:
        return None
    scorer, renderer = HeadScorer(model.parts, model.rows, model.options.r2), model.renderer
    found = []
    for one in groups:
        answers = [renderer.content_ids(record.response or "") for record in one.answers]
        found.append(scorer.scores(renderer.render(one.first.prompt), answers, None))
    return found


def parted(groups: Sequence[Candidates], n_train: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to test on, drawn by request with its pair and its versions.

    About `n_train` to train on, and hardly more than half of a small data set, so that a test is left.
    """
    requests = [replace(one.first, messages=one.first.prompt, id=one.request_id) for one in groups]
    names = families(requests)
    order = sorted(set(names))
    random.Random(f"ranking/{seed}").shuffle(order)
    train: list[int] = []
    for name in order:
        if len(train) >= min(n_train, len(groups) // 2):
            break
        train += [index for index, own in enumerate(names) if own == name]
    chosen = set(train)
    return sorted(chosen), [index for index in range(len(groups)) if index not in chosen]


MALICIOUS_SETS = {name: MALICIOUS for name in ("advbench_categories", "airt", "uncensorbench", "harmbench_test")}
BENIGN_SETS = {name: BENIGN for name in ("alpaca", "overrefusal")}
