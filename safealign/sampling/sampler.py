"""What one undefended model writes, as records: everyday requests, answers of every kind, answers that turn.

Everyday requests follow Magpie (arXiv 2406.08464): the model is given its template up to the user's header and samples
what a user would write.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from safealign.assets import cache_dir
from safealign.data.records import BENIGN, MALICIOUS, Message, Record
from safealign.data.rendering import Renderer
from safealign.data.splicing import splice_all
from safealign.judges.harm_answer import degeneracy
from safealign.layout import Rendered, Span
from safealign.modeling.identity import ModelIdentity
from safealign.sampling.deep import write_long
from safealign.sampling.keeping import Portions, cached
from safealign.sampling.labelling import Labeller
from safealign.sampling.settings import SamplingSettings
from safealign.sampling.writer import Progress, Writer

T = TypeVar("T")
Refused = Callable[[str], bool]
_MIN_WORDS, _MAX_WORDS = 3, 60
# `source` of benign requests from elsewhere that the model answered itself, of the model's own words in place of an
# answer from elsewhere, and of long answers.
OWN_ANSWER, DISTILLED, DEEP = "sampled_answers", "sampled_distilled", "sampled_deep"


class Sampler:
    """Samples from one undefended model, batched; results are kept in the cache under a content hash.

    A job that was killed goes on after the last portion that it finished, with the result of one that was not.
    `labeller`: who has to agree that an answer is what its request's label says. `only_cached`: what is not in the
    cache yet comes back empty instead of being sampled. `say` gets lines about the cache, never a text.
    """

    def __init__(
        self,
        model: Any,
        renderer: Renderer,
        settings: SamplingSettings,
        folder: Path | None = None,
        *,
        only_cached: bool = False,
        labeller: Labeller | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.model, self.renderer, self.settings = model, renderer, settings
        self.folder = folder or cache_dir() / "sampled"
        self.only_cached, self.labeller, self.say = only_cached, labeller, say
        self._writer = Writer(model, renderer, settings)
        self._identity = ModelIdentity(model)

    def everyday(self, harmless: Callable[[str], bool], progress: Progress | None = None) -> list[Record]:
        """Everyday requests that pass `harmless`, de-duplicated, each with the model's own greedy answer."""
        key = self._key("everyday", ("everyday_max_new_tokens", "temperature", "top_k", "seed"), [])
        return self._cached(key, lambda kept: self._sample_everyday(harmless, progress, kept))

    def compliant(
        self, requests: Sequence[Record], refused: Refused, progress: Progress | None = None
    ) -> list[Record]:
        """The model's own answers to malicious requests, without those that `refused` recognises."""
        return self._own_answers("compliant", requests, MALICIOUS, refused, progress)

    def answers(
        self, requests: Sequence[Record], refused: Refused, progress: Progress | None = None
    ) -> list[Record]:
        """The model's own answers to benign requests, without those that `refused` recognises."""
        return self._own_answers("answers", requests, BENIGN, refused, progress)

    def distilled(
        self, requests: Sequence[Record], refused: Refused, progress: Progress | None = None
    ) -> list[Record]:
        """The model's own answers to benign requests, as `answers`, without those that go round in circles too.

        They are for requests that came with an answer: who learns its own words keeps its usefulness.
        """

        def unfit(text: str) -> bool:
            """Whether a text is not worth learning."""
            return refused(text) or degeneracy(text) is not None

        return self._own_answers("distilled", requests, BENIGN, unfit, progress)

    def deep(
        self, requests: Sequence[Record], refused: Refused, progress: Progress | None = None
    ) -> list[Record]:
        """Long answers to requests of one label, each as long as it neither refuses nor goes round in circles.

        For prefixes of 40 tokens and more: what stands there is text from deep inside an answer.
        """
        chosen = spread(requests, self.settings.deep)
        asked = [[record.label, *turns] for record, turns in zip(chosen, _asked(chosen), strict=True)]
        shaped_by = ("deep_max_new_tokens", "deep_chunk", "deep_repetition_penalty")
        key = self._key("deep", shaped_by, asked, self.labeller)
        return self._cached(key, lambda kept: self._sample_deep(chosen, refused, progress, kept))

    def splices(self, openings: Sequence[Record], rests: Sequence[Record], kind: str = "splices") -> list[Record]:
        """Beginnings of the one that turn into the other midway, labelled by span: see `data.splicing`.

        `kind`, splices or benign_splices, says which of the settings' counts is meant. Nothing is asked of the model.
        """
        content = [[r.id, r.label, r.response_label, *map(list, r.messages)] for r in (*openings, *rests)]
        key = self._key(kind, ("splice_opening", "seed"), [len(openings), *content])
        rng = random.Random(f"{kind}/{self.settings.seed}")
        count, opening = getattr(self.settings, kind), self.settings.splice_opening
        return self._cached(key, lambda kept: splice_all(openings, rests, count, self.renderer, opening, rng))

    def answer(
        self,
        prompts: Sequence[Sequence[Message]],
        max_new_tokens: int,
        progress: Progress | None = None,
        kept: Portions | None = None,
    ) -> list[tuple[str, bool]]:
        """Greedy answers of the bare model: `(text, complete)`; complete is False when the limit cut it."""
        rendered = [self.renderer.render(prompt) for prompt in prompts]
        return self._generate(rendered, max_new_tokens, None, progress, kept)

    # ---- what is asked ----------------------------------------------------------------------------------------

    def _sample_everyday(
        self, harmless: Callable[[str], bool], progress: Progress | None, kept: Portions
    ) -> list[Record]:
        opening = self.renderer.render([Message("user", "x")])
        end = opening.content[-1].start
        bare = Rendered(opening.input_ids[:end], end - 1, (), Span(end, end))
        found: dict[str, None] = {}
        for attempt in range(6):  # a model that repeats itself must not sample for ever
            missing = self.settings.everyday - len(found)
            if missing <= 0:
                break
            seed = self.settings.seed + (attempt << 32)
            drawn = self._generate([bare] * max(16, missing * 5 // 4), _MAX_WORDS, seed, None, kept)
            found |= {t.strip(): None for t, complete in drawn if complete and _is_request(t) and harmless(t)}
            if progress is not None:
                progress(min(missing, self.settings.everyday))
        texts = list(found)[: self.settings.everyday]
        prompts = [(Message("user", text),) for text in texts]
        answers = self.answer(prompts, self.settings.everyday_max_new_tokens, progress, kept)
        return [
            Record(
                (*prompt, Message("assistant", text)),
                BENIGN,
                BENIGN,
                id=f"everyday-{i}",
                source="sampled_everyday",
                complete=complete,
            )
            for i, (prompt, (text, complete)) in enumerate(zip(prompts, answers, strict=True))
            if text.strip()
        ]

    def _own_answers(
        self, kind: str, requests: Sequence[Record], label: str, unfit: Refused, progress: Progress | None
    ) -> list[Record]:
        """Answers to some of the requests, from the cache or sampled; request and answer get the same `label`."""
        chosen = [replace(record, label=label) for record in spread(requests, getattr(self.settings, kind))]

        def sample(kept: Portions) -> list[Record]:
            """The chosen requests with fresh answers."""
            limit = getattr(self.settings, f"{kind}_max_new_tokens")
            answers = self.answer([record.prompt for record in chosen], limit, progress, kept)
            fit = [
                (record, text, complete)
                for record, (text, complete) in zip(chosen, answers, strict=True)
                if len(text.split()) >= _MIN_WORDS and not unfit(text)
            ]
            agreed = self._agreed([record for record, *_ in fit], [text for _, text, _ in fit])
            return [_answered(*one, kind) for one, agrees in zip(fit, agreed, strict=True) if agrees]

        key = self._key(kind, (f"{kind}_max_new_tokens",), _asked(chosen), self.labeller)
        return self._cached(key, sample)

    def _sample_deep(
        self, chosen: Sequence[Record], refused: Refused, progress: Progress | None, kept: Portions
    ) -> list[Record]:
        def accepts(indices: Sequence[int], texts: Sequence[str]) -> list[bool]:
            """Of each answer so far, whether it is what it is wanted for."""
            going = [(index, text) for index, text in zip(indices, texts, strict=True) if not refused(text)]
            agreed = self._agreed([chosen[index] for index, _ in going], [text for _, text in going])
            kept = {index for (index, _), agrees in zip(going, agreed, strict=True) if agrees}
            return [index in kept for index in indices]

        rendered = [self.renderer.render(record.prompt) for record in chosen]
        answers = write_long(self._writer, rendered, self.settings, accepts, progress, kept)
        return [
            _answered(record, text, complete, "deep")
            for record, (text, complete) in zip(chosen, answers, strict=True)
            if len(text.split()) >= _MIN_WORDS
        ]

    def _agreed(self, records: Sequence[Record], texts: Sequence[str]) -> list[bool]:
        if self.labeller is None:
            return [True] * len(texts)
        return self.labeller.agrees([r.label or BENIGN for r in records], [r.request for r in records], texts)

    # ---- how it is written and kept ---------------------------------------------------------------------------

    def _generate(
        self,
        prompts: Sequence[Rendered],
        max_new_tokens: int,
        seed: int | None,
        progress: Progress | None,
        kept: Portions | None,
    ) -> list[tuple[str, bool]]:
        """`(text, complete)` of each prompt, in order; greedy without a `seed`."""
        return [self._writer.text(ids) for ids in self._writer.write(prompts, max_new_tokens, seed, progress, kept)]

    def _key(
        self,
        kind: str,
        shaped_by: Iterable[str],
        texts: Iterable[object],
        labeller: Labeller | None = None,
    ) -> str:
        names = (kind, *shaped_by)
        settings = {name: getattr(self.settings, name) for name in names}
        content = [kind, self._identity.digest(), self.renderer.tokenizer.chat_template, settings, list(texts)]
        content += [] if labeller is None else [labeller.key]
        return f"{kind}-{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]}"

    def _cached(self, key: str, make: Callable[[Portions], list[Record]]) -> list[Record]:
        if self.only_cached and not (self.folder / f"{key}.jsonl").exists():
            return []
        return cached(self.folder, key, make, self.say)


def spread(records: Sequence[T], n: int) -> list[T]:
    """At most n records, evenly spaced, so that every source and kind keeps its share."""
    if n >= len(records):
        return list(records)
    return [records[i * len(records) // n] for i in range(n)]


def _asked(records: Sequence[Record]) -> list[list[list[str]]]:
    return [list(map(list, record.prompt)) for record in records]


def _answered(record: Record, text: str, complete: bool, kind: str) -> Record:
    """The record's request with a sampled answer, which gets the request's label."""
    return Record(
        (*record.prompt, Message("assistant", text)),
        record.label,
        record.label,
        id=f"{record.id}#{kind}",
        source=f"sampled_{kind}",
        category=record.category,
        complete=complete,
    )


def _is_request(text: str) -> bool:
    return _MIN_WORDS <= len(text.split()) <= _MAX_WORDS
