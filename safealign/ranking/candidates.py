"""Candidate answers: what one undefended model says to a request when it is asked in several ways.

Harmful texts are among them: they lie in the data cache alone, readable by their owner, as `sampling` keeps its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safealign.assets import cache_dir
from safealign.data.records import Message, Record
from safealign.data.rendering import Renderer
from safealign.modeling.identity import model_digest
from safealign.ranking.settings import CandidateSettings
from safealign.sampling import SamplingSettings
from safealign.sampling.keeping import Portions, cached
from safealign.sampling.writer import Progress, Writer

# A jailbreak the other way round: the first words of a refusal, which the model goes on from.
DECLINING = (
    "I'm sorry, but I can't",
    "I cannot help with",
    "Sorry, I am unable to",
    "I'm not able to",
    "I must decline",
    "Unfortunately, I can't",
)
# Ways in which the answer's first words are given.
PREFILLED, DECLINED = "prefilled", "declined"


@dataclass(frozen=True)
class Way:
    """A way of asking: `ask` turns a request's messages into those that the model sees, `count` answers are drawn.

    A final assistant turn that `ask` adds is what the answer begins with.
    """

    name: str
    count: int
    ask: Callable[[Sequence[Message]], Sequence[Message]]


def declined(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages with an answer that begins to refuse; which beginning, the request's own text decides."""
    at = hashlib.sha256(messages[-1].content.encode()).digest()[0] % len(DECLINING)
    return (*messages, Message("assistant", DECLINING[at]))


def sample_candidates(
    model: Any,
    renderer: Renderer,
    settings: CandidateSettings,
    requests: Sequence[Record],
    ways: Sequence[Way],
    *,
    folder: Path | None = None,
    say: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> list[Record]:
    """Answers to each of the requests (prompts only, each with an id), asked in each of the `ways`, in their order.

    Every answer stands behind the plain request, whatever drew it out; what it was made to begin with is part of it.
    Its id is `REQUEST#WAY-NUMBER`. What the cache holds is not sampled again, and what a kill left unfinished goes on.
    """
    asked = [(r, way, [Message(*turn) for turn in way.ask(r.prompt)]) for r in requests for way in ways if way.count]
    key = _key(model, renderer, settings, asked)

    def make(kept: Portions) -> list[Record]:
        """Everything, portion by portion."""
        writer = Writer(model, renderer, _sampling(settings), top_p=settings.top_p, shared=True)
        rendered = [renderer.render(turns, close=False) for _, _, turns in asked]
        prompts = [prompt for prompt, (_, way, _) in zip(rendered, asked, strict=True) for _ in range(way.count)]
        answers = iter(writer.write(prompts, settings.max_new_tokens, settings.seed, progress, kept))
        return [
            _answered(record, way, number, turns, *writer.text(next(answers)))
            for record, way, turns in asked
            for number in range(way.count)
        ]

    return cached(folder or cache_dir() / "ranking", key, make, say)


def _answered(record: Record, way: Way, number: int, turns: Sequence[Message], text: str, complete: bool) -> Record:
    begun = turns[-1].content if turns[-1].role == "assistant" else ""
    whole = (begun + text).rstrip("\ufffd")  # a character may be cut in the middle
    return Record(
        (*record.prompt, Message("assistant", whole)),
        record.label,
        id=f"{record.id}#{way.name}-{number}",
        source=f"{record.source}+sampled_{way.name}",
        category=record.category,
        complete=complete,
    )


def _sampling(settings: CandidateSettings) -> SamplingSettings:
    return SamplingSettings(batch_size=settings.batch_size, temperature=settings.temperature, top_k=0)


def _key(
    model: Any, renderer: Renderer, settings: CandidateSettings, asked: Sequence[tuple[Record, Way, list[Message]]]
) -> str:
    shaped_by = ("max_new_tokens", "temperature", "top_p", "seed")
    how = {name: value for name, value in asdict(settings).items() if name in shaped_by}
    texts = [[r.id, r.label, r.source, list(map(list, r.prompt)), w.name, w.count, turns] for r, w, turns in asked]
    # Not the short digest of a base model's weights: an adapter on it, or a late change of a weight, answers otherwise.
    content = [model_digest(model), renderer.identity, how, texts]
    return f"candidates-{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]}"
