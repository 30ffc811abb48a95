"""The batched decoder: what runs under one set of options share, and the engine that it drives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from safealign.decoding.decoded import DecodedRow
from safealign.decoding.engine import Fed
from safealign.decoding.observing import AnswerStates
from safealign.decoding.options import CalibratedThresholds, DecodingOptions
from safealign.decoding.planning import Feed
from safealign.decoding.policy import Policy, RefusalTexts, TriggerEncoder
from safealign.decoding.rows import EngineRow, Prompt
from safealign.decoding.rules import Rules
from safealign.decoding.run import Run
from safealign.decoding.sampler import Sampler


class Engine(Protocol):
    """What the decoder needs of an engine; `engine.CachedEngine` is the one that ships."""

    def open(
        self,
        n_rows: int,
        longest: int,
        room: int,
        *,
        reach: int = 0,
        listen: bool = False,
        static: bool = False,
        chunk: int | None = None,
    ) -> None:
        """Starts a batch of at most `n_rows`."""
        ...

    def admit(self, prompts: Sequence[Prompt]) -> list[EngineRow]:
        """Gives each prompt a free row."""
        ...

    def prefill(self, feeds: Sequence[Feed], *, apart: bool = False) -> Fed:
        """Feeds the prompts and evaluates their safety rows, `apart` in forwards of their own."""
        ...

    def forward(self, feeds: Sequence[Feed]) -> Fed:
        """Advances these rows and evaluates their safety rows."""
        ...

    def withdraw(self, row: EngineRow, length: int) -> None:
        """Rolls a row back to its first `length` text rows."""
        ...

    def close(self, row: EngineRow) -> None:
        """Takes a finished row out of the batch."""
        ...


class Decoder:
    """Decodes batches of prompts under one set of options.

    `encoder` renders the refusal texts; `tokenizer` is needed for stop strings alone; `eos_ids` end an answer;
    `record` evaluates every window that calibration needs and never intervenes; `observer`, the engine's, is told which
    answers are done, and an answer's last token is fed too, for its state. Raises ConfigError where a threshold is
    `calibrated` and there is no calibration.
    """

    def __init__(
        self,
        engine: Engine,
        options: DecodingOptions,
        *,
        encoder: TriggerEncoder,
        eos_ids: Iterable[int],
        calibrated: CalibratedThresholds | None = None,
        record: bool = False,
        tokenizer: Any = None,
        observer: AnswerStates | None = None,
    ) -> None:
        self.engine, self.options, self.tokenizer, self.observer = engine, options, tokenizer, observer
        self.eos_ids = frozenset(eos_ids)
        self.rules = options.rules(calibrated, record=record) if options.safety else Rules()
        self.thresholds = calibrated or CalibratedThresholds()
        self.policy = Policy(encoder, RefusalTexts(options.trigger, options.refusal))
        self.sampler = Sampler(self.eos_ids)

    def decode(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], batch_size: int | None = None
    ) -> list[DecodedRow]:
        """Answers in the order of the prompts; `seeds` one per row, at most `batch_size` rows at a time."""
        run, rows = self.start(prompts, seeds, batch_size)
        while run.busy:
            run.step()
        return rows

    def start(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], batch_size: int | None = None
    ) -> tuple[Run, list[DecodedRow]]:
        """Feeds the first prompts; the caller then steps the run while it is busy."""
        n_rows = min(batch_size or len(prompts), len(prompts))
        longest = max((prompt.n_text for prompt in prompts), default=0)
        run = Run(self, n_rows, longest, self.options.max_new_tokens + 16)
        rows = [run.submit(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        run.sort()
        run.admit()
        return run, rows
