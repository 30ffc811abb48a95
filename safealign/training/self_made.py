"""What the undefended model writes for training, as `data.sampling` asks, and how it joins the sources' records."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from safealign.config.roots import TrainConfig
from safealign.data.records import BENIGN, MALICIOUS, Record
from safealign.data.refusals import names_harm
from safealign.data.rendering import Renderer
from safealign.data.splicing import SPLICED, donor
from safealign.errors import ConfigError
from safealign.judges.refusal import RefusalMatcher
from safealign.modeling.precision import has_fast_bf16
from safealign.sampling import Sampler, SamplingSettings, spread
from safealign.training.labellers import labeller
from safealign.training.splitting import family

Say = Callable[[str], None]
_DEEP = 200  # tokens from which an answer is called deep in what is said of it


@dataclass
class Sampled:
    """What the undefended model wrote: `everyday` requests with answers, `compliant` answers to malicious requests,
    `answers` to benign requests that had none, `distilled` ones for those that had one, `deep` long ones of both
    labels, and `splices` of all these.
    """

    everyday: list[Record] = field(default_factory=list)
    compliant: list[Record] = field(default_factory=list)
    answers: list[Record] = field(default_factory=list)
    distilled: list[Record] = field(default_factory=list)
    deep: list[Record] = field(default_factory=list)
    splices: list[Record] = field(default_factory=list)

    def joined_to(self, records: Sequence[Record]) -> list[Record]:
        """The sources' records and the sampled ones, one answer to a request.

        The model's own words replace a benign request's answer, under its id; a long answer replaces a short one.
        """
        own = {family_id(r): r for r in (*self.distilled, *self.deep) if r.label == BENIGN}
        long = {family_id(r) for r in self.deep}
        harmful = [r for r in self.compliant if family_id(r) not in long]
        harmful += [r for r in self.deep if r.label == MALICIOUS]
        joined = [_in_own_words(record, own.get(record.id or "")) for record in records]
        return [*joined, *self.everyday, *harmful, *self.answers, *self.splices]


def sample(
    config: TrainConfig, model: Any, renderer: Renderer, records: Sequence[Record], say: Say, only_cached: bool = False
) -> Sampled:
    """What the undefended model writes itself, as `data.sampling` asks.

    `only_cached`: what is not in the cache yet is left out rather than sampled. Raises ConfigError where the cache lies
    in the run directory, which is handed on to others.
    """
    wanted = config.data.sampling
    writer = model if only_cached else quick_copy(model)
    judge = labeller(config, records)
    settings = sampling_settings(config)
    sampler = Sampler(writer, renderer, settings, only_cached=only_cached, labeller=judge, say=say)
    refuse_inside(sampler.folder, Path(config.run_dir))
    refused, found = RefusalMatcher().refused, Sampled()

    def told(made: Sequence[Record], what: str) -> list[Record]:
        missing = only_cached and not made
        say("  none in the cache: python -m safealign.sampling makes them" if missing else f"  {len(made)} {what}")
        return list(made)

    if wanted.everyday:
        say(f"everyday requests of the undefended model, with its own answers: {wanted.everyday} wanted")
        found.everyday = told(sampler.everyday(lambda text: not names_harm(text)), "in hand")
    if wanted.compliant and (malicious := to_comply(records)):
        say(f"the undefended model's own answers to malicious training requests: {wanted.compliant} wanted")
        found.compliant = told(sampler.compliant(malicious, refused), "complied with")
    if wanted.answers and (benign := unanswered(records)):
        say(f"the undefended model's own answers to benign requests without one: {wanted.answers} wanted")
        found.answers = told(sampler.answers(benign, refused), "in hand")
    answered = to_distil(records)
    long = spread(answered, wanted.deep)
    if wanted.distilled and (answered := _without(answered, long)):
        say(f"the undefended model's own words in place of other answers to benign requests: {wanted.distilled} wanted")
        found.distilled = told(sampler.distilled(answered, refused), "in hand")
    if wanted.deep:
        harmful = _others_first(to_comply(records), wanted.compliant, wanted.deep)
        for what, some in (("malicious", harmful), ("benign", long)):
            say(f"long answers of the undefended model to {what} requests: {wanted.deep} wanted")
            made = sampler.deep(some, refused)
            found.deep += told(made, f"in hand, {_long(made, renderer)} of {_DEEP} tokens or more")
    found.splices = _splices(sampler, found.joined_to(records), told, say)
    return found


def _splices(
    sampler: Sampler, records: Sequence[Record], told: Callable[[Sequence[Record], str], list[Record]], say: Say
) -> list[Record]:
    """Answers that turn, made of what is at hand."""
    benign = [r for r in records if r.label == BENIGN and r.response and not r.spans and r.response_label != MALICIOUS]
    harmful = [r for r in records if r.response_label == MALICIOUS and not r.spans]
    found = []
    if sampler.settings.splices:
        say(f"benign answers that turn harmful midway: {sampler.settings.splices} wanted")
        found += told(sampler.splices(benign, harmful), "in hand")
    if sampler.settings.benign_splices:
        say(f"benign answers that turn to another midway: {sampler.settings.benign_splices} wanted")
        found += told(sampler.splices(benign, benign, "benign_splices"), "in hand")
    return found


def to_comply(records: Sequence[Record]) -> list[Record]:
    """Malicious requests without a harmful answer: those that the undefended model is asked to answer."""
    return [record for record in records if record.label == MALICIOUS and record.response_label != MALICIOUS]


def unanswered(records: Sequence[Record]) -> list[Record]:
    """Benign requests that came without an answer."""
    return [record for record in records if record.label == BENIGN and not record.response]


def to_distil(records: Sequence[Record]) -> list[Record]:
    """Benign requests that came with a harmless answer."""
    return [r for r in records if r.label == BENIGN and r.response and r.response_label != MALICIOUS and not r.spans]


def sampling_settings(config: TrainConfig) -> SamplingSettings:
    """The sampler's settings from `data.sampling`."""
    return SamplingSettings(**asdict(config.data.sampling))


def apart(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """`(spliced, the others)`: spliced records are made of others and no requests of their own."""
    spliced = [record for record in records if record.source == SPLICED]
    return spliced, [record for record in records if record.source != SPLICED]


def on_side(spliced: Sequence[Record], side: Sequence[Record]) -> list[Record]:
    """The spliced records both of whose halves stand on this side of a split."""
    there = {family(record) for record in side}
    return [record for record in spliced if family(record) in there and donor(record) in there]


def family_id(record: Record) -> str:
    """The id of the record that a sampled answer was written for."""
    return (record.id or "").rpartition("#")[0]


def _others_first(records: Sequence[Record], taken: int, n: int) -> list[Record]:
    """At most n of the records, where possible not those that `spread` takes for another kind of answer."""
    asked = spread(records, taken)
    others = spread(_without(records, asked), n)
    return [*others, *spread(asked, n - len(others))]


def _without(records: Sequence[Record], others: Sequence[Record]) -> list[Record]:
    taken = {record.id for record in others}
    return [record for record in records if record.id not in taken]


def _in_own_words(record: Record, own: Record | None) -> Record:
    if own is None or record.label != BENIGN:
        return record
    # The request still comes from where it came from: its licence goes by the first part of the name.
    return replace(own, id=record.id, source=f"{record.source}+{own.source}", where=record.where)


def _long(records: Sequence[Record], renderer: Renderer) -> int:
    return sum(len(renderer.content_ids(record.response or "")) >= _DEEP for record in records)


def quick_copy(model: Any) -> Any:
    """The model in bf16 for sampling, where the device is good at it."""
    return copy.deepcopy(model).to(torch.bfloat16) if has_fast_bf16() else model


def refuse_inside(cache: Path, run_dir: Path) -> None:
    """Raises ConfigError for a folder of sampled texts, or of examples made of them, below `run_dir`."""
    if run_dir.resolve() in cache.resolve().parents:
        raise ConfigError(
            f"the cache {cache} lies in run_dir={run_dir}, and sampled texts must not travel with a run: set "
            "SAFEALIGN_CACHE to another place"
        )
