"""What a ranker learns from: requests of the sources, candidate answers to them, and who says which are good."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from safealign.assets import cache_dir
from safealign.config.roots import TrainConfig
from safealign.data.records import BENIGN, MALICIOUS, Record
from safealign.data.rendering import Renderer
from safealign.data.wrapping import generic_templates, split
from safealign.errors import DataError
from safealign.evaluation.attacks import PrefillAttack, WrappedAttack
from safealign.judges.encoder import SentenceEncoder
from safealign.ranking import CandidateSettings, FitSettings, RankerSettings
from safealign.ranking.candidates import DECLINED, PREFILLED, Way, declined, sample_candidates
from safealign.ranking.labels import Judge, by_guard, by_keywords, by_rules
from safealign.sampling import spread
from safealign.training.labellers import probe_guard
from safealign.training.leaking import Encode
from safealign.training.prepare import leak_guard
from safealign.training.self_made import quick_copy, refuse_inside
from safealign.training.sources import load_sources, prompt_only
from safealign.training.splitting import distinct
from safealign.training.tenths import Tenths

Say = Callable[[str], None]


def candidate_settings(config: TrainConfig) -> CandidateSettings:
    """The sampling settings of `ranker.candidates`."""
    return CandidateSettings(**asdict(config.ranker.candidates))


def fit_settings(config: TrainConfig) -> FitSettings:
    """The training settings of `ranker.fit`."""
    return FitSettings(**asdict(config.ranker.fit))


def ranker_settings(config: TrainConfig) -> RankerSettings:
    """The ranker that `ranker` asks for; raises ConfigError for one that cannot be."""
    wanted = config.ranker
    return RankerSettings(
        wanted.layer, wanted.pool, wanted.kind, wanted.hidden, wanted.heads, wanted.dropout, wanted.tau
    )


def encoder(config: TrainConfig) -> Encode | None:
    """What finds prompts that repeat an evaluation prompt by meaning, where the leak check is on."""
    wanted = config.data.leak_check.enabled and config.data.evaluation
    return SentenceEncoder(offline=config.offline).encode if wanted else None


def ways(config: TrainConfig, renderer: Renderer) -> list[Way]:
    """How each request is asked; jailbreak templates are of the side that training may see."""
    wanted = config.ranker.candidates
    templates, _ = split(generic_templates())
    prefill = PrefillAttack(wanted.prefill_tokens, renderer.tokenizer)
    wrapped = [WrappedAttack(templates, seed=number) for number in range(wanted.wrapped)]
    return [
        Way("direct", wanted.direct, tuple),
        *(Way(f"wrapped{number}", 1, attack.apply) for number, attack in enumerate(wrapped)),
        Way(PREFILLED, wanted.prefilled, prefill.apply),
        Way(DECLINED, wanted.declined, declined),
    ]


def requests_of(config: TrainConfig, records: Sequence[Record], renderer: Renderer, say: Say) -> list[Record]:
    """Requests of both labels that repeat no evaluation prompt and fit into `data.max_length`, evenly from all sources.

    Raises DataError where no malicious one is left.
    """
    clean = leak_guard(config, encoder(config), say).clean([prompt_only(r) for r in records if r.label], say)
    asked = [record for record in distinct(clean) if record.prompt and record.prompt[-1].role == "user"]
    fitting = [r for r in asked if len(renderer.render(r.prompt).input_ids) <= config.data.max_length]
    if len(fitting) < len(asked):
        say(f"  left out, prompt longer than data.max_length: {len(asked) - len(fitting)}")
    wanted, found = config.ranker.candidates, []
    for label, count in ((MALICIOUS, wanted.malicious), (BENIGN, wanted.benign)):
        found += spread([record for record in fitting if record.label == label], count)
    if not any(record.label == MALICIOUS for record in found):
        raise DataError("data.sources: no malicious request is left to sample answers to: add records with that label")
    return [replace(record, id=record.id or f"request-{index}") for index, record in enumerate(found)]


def candidates(config: TrainConfig, model: Any, renderer: Renderer, say: Say) -> list[Record]:
    """The answers that `ranker.candidates` asks for, from the cache or sampled."""
    settings, records = candidate_settings(config), load_sources(config)
    requests = requests_of(config, records, renderer, say)
    n = len(requests) * settings.per_request
    say(f"candidates: {settings.per_request} answers of the model to each of {len(requests)} requests ({n})")
    folder = candidate_folder()
    refuse_inside(folder, Path(config.run_dir))
    sample = partial(sample_candidates, folder=folder, say=say, progress=Tenths("sampled", n, say).add)
    return sample(quick_copy(model), renderer, settings, requests, ways(config, renderer))


def candidate_folder() -> Path:
    """Where candidates are kept: harmful ones are among them."""
    return cache_dir() / "ranking"


def judge(config: TrainConfig) -> Judge:
    """Who says which answers are good, as `ranker.judge` names it."""
    if config.ranker.judge == "keywords":
        return by_keywords
    if config.ranker.judge == "rules":
        return by_rules()
    return by_guard(probe_guard(load_sources(config), config.offline), config.ranker.judge_threshold)
