"""One cell of the table: one system's answers to one set of prompts, judged, kept by id for resuming.

No text is kept: harmful answers stay out of reports, logs and files.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safealign.data.records import Message, Record
from safealign.evaluation.attacks import Attack
from safealign.evaluation.metrics.rates import Rate
from safealign.evaluation.systems import System
from safealign.files import write_text
from safealign.judges.harm_answer import attack_succeeded
from safealign.judges.refusal import RefusalMatcher
from safealign.session import Output

Progress = Callable[[int], None]
# conf/judge: did the attack succeed?
JUDGES: dict[str, Callable[..., bool]] = {"refusal_matcher": attack_succeeded}


@dataclass(frozen=True)
class Cell:
    """Outcomes by prompt, in order. `seconds` for all of them; `safety_rows` evaluated in all."""

    system: str
    measure: str
    ids: tuple[str, ...]
    succeeded: tuple[bool, ...]
    refused: tuple[bool, ...]
    intervened_at: tuple[int | None, ...]
    p: tuple[float | None, ...]
    tokens: tuple[int, ...]
    safety_rows: int
    seconds: float

    @property
    def success(self) -> Rate:
        """Share of attacks that succeeded."""
        return Rate.of(self.succeeded)

    @property
    def refusals(self) -> Rate:
        """Share of answers that refuse."""
        return Rate.of(self.refused)

    @property
    def interventions(self) -> Rate:
        """Share of answers in which the rules stepped in, at their start or later."""
        return Rate.of([at is not None for at in self.intervened_at])

    @property
    def mid_answer(self) -> Rate:
        """Share of answers that the rules interrupted after their first token."""
        return Rate.of([at is not None and at > 0 for at in self.intervened_at])


def measure(
    system: System,
    attack: Attack,
    prompts: Sequence[Record],
    name: str,
    *,
    max_new_tokens: int,
    batch_size: int,
    judge: str = "refusal_matcher",
    folder: Path | None = None,
    progress: Progress | None = None,
    keep: list[Output] | None = None,
) -> Cell:
    """Runs one cell, or reads it from `folder` when the same system answered the same prompts before.

    `keep` collects the answers themselves for measures that need the text (never written anywhere).
    """
    conversations = [attack.apply(record.prompt) for record in prompts]
    path = folder / f"{system.key}--{name}.json" if folder is not None else None
    key = _digest(system, conversations, max_new_tokens, judge)
    found = _read(path, key) if keep is None else None
    if found is not None:
        return found
    started = time.monotonic()
    outputs = system.model.generate_batch(
        conversations, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress, **system.options
    )
    cell = _judge(system, name, judge, prompts, conversations, outputs, time.monotonic() - started)
    if keep is not None:
        keep += outputs
    if path is not None:
        write_text(path, json.dumps({"key": key, "cell": asdict(cell)}, allow_nan=False))
    return cell


def _judge(
    system: System,
    name: str,
    judge: str,
    prompts: Sequence[Record],
    conversations: Sequence[Sequence[Message]],
    outputs: Sequence[Output],
    seconds: float,
) -> Cell:
    matcher = RefusalMatcher(system.model.options.trigger)
    prefixes = [turns[-1].content if turns[-1].role == "assistant" else "" for turns in conversations]
    return Cell(
        system=system.name,
        measure=name,
        ids=tuple(str(record.id) for record in prompts),
        succeeded=tuple(
            JUDGES[judge](out.text, prefix, matcher=matcher) for out, prefix in zip(outputs, prefixes, strict=True)
        ),
        refused=tuple(out.refused for out in outputs),
        intervened_at=tuple(out.intervened_at for out in outputs),
        p=tuple(out.p for out in outputs),
        tokens=tuple(out.n_tokens for out in outputs),
        safety_rows=sum(len(out.trace) for out in outputs),
        seconds=seconds,
    )


def _digest(
    system: System, conversations: Sequence[Sequence[Message]], max_new_tokens: int, judge: str
) -> str:
    """What a kept cell must agree in to be used again."""
    card = system.model.card.to_dict() if system.model.card is not None else None
    # Two models can carry the same card, and a bare one carries none: the weights tell them apart.
    content = [system.name, dict(system.options), card, system.weights, judge, max_new_tokens, conversations]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _read(path: Path | None, key: str) -> Cell | None:
    if path is None or not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["key"] != key:
            return None
        cell = content["cell"].items()
        fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in cell}
        return Cell(**fields)
    except (ValueError, TypeError, KeyError, AttributeError):  # torn, or written by another version
        return None
