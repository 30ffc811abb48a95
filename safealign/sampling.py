"""What the undefended model writes itself: everyday requests with its own answers, and its compliant answers.

`python -m safealign.sampling +recipe=llama_lora` fills the cache ahead of training; training does the same when
something is missing. Texts go into the data cache only. Everyday requests follow Magpie (arXiv 2406.08464): the
model is given its template up to the user's header and samples what a user would write.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safealign.assets import cache_dir
from safealign.commands import run_command
from safealign.config.roots import TrainConfig
from safealign.data.records import BENIGN, MALICIOUS, Message, Record
from safealign.data.rendering import Renderer
from safealign.decoding import CachedEngine, Decoder, DecodingOptions, Prompt
from safealign.errors import DataError
from safealign.layout import Rendered, Span
from safealign.modeling.loading import weights_digest

Progress = Callable[[int], None]
T = TypeVar("T")
_MIN_WORDS, _MAX_WORDS = 3, 60
# `source` of benign requests from elsewhere that the model answered itself.
OWN_ANSWER = "sampled_answers"


@dataclass(frozen=True)
class SamplingSettings:
    """How much is sampled and how; lengths in tokens. What shapes a kind of text is part of its cache key."""

    everyday: int = 400
    everyday_max_new_tokens: int = 48
    compliant: int = 200
    compliant_max_new_tokens: int = 48
    answers: int = 100
    answers_max_new_tokens: int = 48
    batch_size: int = 64
    temperature: float = 1.0
    top_k: int = 100
    seed: int = 0


class Sampler:
    """Samples from one undefended model, batched; results are kept in the cache under a content hash.

    `only_cached`: what is not in the cache yet comes back empty instead of being sampled.
    """

    def __init__(
        self,
        model: Any,
        renderer: Renderer,
        settings: SamplingSettings,
        folder: Path | None = None,
        *,
        only_cached: bool = False,
    ) -> None:
        self.model, self.renderer, self.settings = model, renderer, settings
        self.folder = folder or cache_dir() / "sampled"
        self.only_cached = only_cached

    def everyday(self, harmless: Callable[[str], bool], progress: Progress | None = None) -> list[Record]:
        """Everyday requests that pass `harmless`, de-duplicated, each with the model's own greedy answer."""
        key = self._key("everyday", ("temperature", "top_k", "seed"), [])
        return self._cached(key, lambda: self._sample_everyday(harmless, progress))

    def compliant(
        self, requests: Sequence[Record], refused: Callable[[str], bool], progress: Progress | None = None
    ) -> list[Record]:
        """The model's own answers to malicious requests, without those that `refused` recognises."""
        return self._own_answers("compliant", requests, MALICIOUS, refused, progress)

    def answers(
        self, requests: Sequence[Record], refused: Callable[[str], bool], progress: Progress | None = None
    ) -> list[Record]:
        """The model's own answers to benign requests, without those that `refused` recognises."""
        return self._own_answers("answers", requests, BENIGN, refused, progress)

    def answer(
        self, prompts: Sequence[Sequence[Message]], max_new_tokens: int, progress: Progress | None = None
    ) -> list[tuple[str, bool]]:
        """Greedy answers of the bare model: `(text, complete)`; complete is False when the limit cut it."""
        rendered = [self.renderer.render(prompt) for prompt in prompts]
        return self._generate(rendered, max_new_tokens, None, progress)

    def _sample_everyday(self, harmless: Callable[[str], bool], progress: Progress | None) -> list[Record]:
        opening = self.renderer.render([Message("user", "x")])
        end = opening.content[-1].start
        bare = Rendered(opening.input_ids[:end], end - 1, (), Span(end, end))
        found: dict[str, None] = {}
        for attempt in range(6):  # a model that repeats itself must not sample for ever
            missing = self.settings.everyday - len(found)
            if missing <= 0:
                break
            seed = self.settings.seed + (attempt << 32)
            drawn = self._generate([bare] * max(16, missing * 5 // 4), _MAX_WORDS, seed, None)
            found |= {t.strip(): None for t, complete in drawn if complete and _is_request(t) and harmless(t)}
            if progress is not None:
                progress(min(missing, self.settings.everyday))
        texts = list(found)[: self.settings.everyday]
        prompts = [(Message("user", text),) for text in texts]
        answers = self.answer(prompts, self.settings.everyday_max_new_tokens, progress)
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
        self,
        kind: str,
        requests: Sequence[Record],
        label: str,
        refused: Callable[[str], bool],
        progress: Progress | None,
    ) -> list[Record]:
        """Answers to some of the requests, from the cache or sampled; request and answer get the same `label`."""
        chosen = spread(requests, getattr(self.settings, kind))

        def sample() -> list[Record]:
            """The chosen requests with fresh answers."""
            limit = getattr(self.settings, f"{kind}_max_new_tokens")
            answers = self.answer([record.prompt for record in chosen], limit, progress)
            return [
                Record(
                    (*record.prompt, Message("assistant", text)),
                    label,
                    label,
                    id=f"{record.id}#{kind}",
                    source=f"sampled_{kind}",
                    category=record.category,
                    complete=complete,
                )
                for record, (text, complete) in zip(chosen, answers, strict=True)
                if len(text.split()) >= _MIN_WORDS and not refused(text)
            ]

        return self._cached(self._key(kind, (), [list(map(list, record.prompt)) for record in chosen]), sample)

    def _generate(
        self, prompts: Sequence[Rendered], max_new_tokens: int, seed: int | None, progress: Progress | None
    ) -> list[tuple[str, bool]]:
        """`(text, complete)` of each prompt, in order; greedy without a `seed`."""
        sampled = {"temperature": self.settings.temperature, "top_k": self.settings.top_k}
        drawn: dict[str, Any] = {} if seed is None else sampled
        options = DecodingOptions(safety=False, max_new_tokens=max_new_tokens, **drawn)
        decoder = Decoder(CachedEngine(self.model, None), options, encoder=self.renderer, eos_ids=self.renderer.eos_ids)
        first = 0 if seed is None else seed
        seeds = [first + i for i in range(len(prompts))]
        run, rows = decoder.start([Prompt(prompt) for prompt in prompts], seeds, self.settings.batch_size)
        reported = 0
        while run.busy:
            run.step()
            if progress is not None and run.finished > reported:
                progress(run.finished - reported)
            reported = run.finished
        return [self._text(row.tokens) for row in rows]

    def _text(self, ids: Sequence[int]) -> tuple[str, bool]:
        end = next((i for i, token in enumerate(ids) if token in self.renderer.eos_ids), None)
        text = self.renderer.tokenizer.decode(list(ids[:end]), skip_special_tokens=True)
        return text, end is not None

    def _key(self, kind: str, drawn_with: Iterable[str], texts: Iterable[object]) -> str:
        names = (kind, f"{kind}_max_new_tokens", *drawn_with)
        settings = {name: getattr(self.settings, name) for name in names}
        content = [kind, weights_digest(self.model), self.renderer.tokenizer.chat_template, settings, list(texts)]
        return f"{kind}-{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]}"

    def _cached(self, key: str, make: Callable[[], list[Record]]) -> list[Record]:
        path = self.folder / f"{key}.jsonl"
        if path.exists():
            return read_cache(path)
        if self.only_cached:
            return []
        records = make()
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        lines = [json.dumps(record.to_dict(), ensure_ascii=False) for record in records]
        temporary.write_text("\n".join([*lines, json.dumps({"rows": len(lines)})]) + "\n", encoding="utf-8")
        os.replace(temporary, path)
        return records


def read_cache(path: Path) -> list[Record]:
    """Reads a cache file; raises DataError when its last line, which counts the rows, does not fit."""
    try:
        *rows, last = [json.loads(line) for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]
        if last == {"rows": len(rows)}:
            return [Record.from_dict(row, f"{path.name}:{i + 1}") for i, row in enumerate(rows)]
    except ValueError:
        pass
    raise DataError(f"{path} is torn: delete it, and it will be sampled again")


def spread(records: Sequence[T], n: int) -> list[T]:
    """At most n records, evenly spaced, so that every source and kind keeps its share."""
    if n >= len(records):
        return list(records)
    return [records[i * len(records) // n] for i in range(n)]


def _is_request(text: str) -> bool:
    return _MIN_WORDS <= len(text.split()) <= _MAX_WORDS


def main(config: TrainConfig) -> None:
    """Fills the cache with what the recipe's data asks for; prints counts and the place, never a text."""
    # The command stands above this room: what it calls is looked up when it runs.
    fill = importlib.import_module("safealign.training.sampling_job").fill_cache
    fill(config)


if __name__ == "__main__":
    sys.exit(run_command(main, record=False))
