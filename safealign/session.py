"""A session: one batch on the engine that answers come to and leave, each streamed in its own state.

`SafeModel.generate`, `stream` and the server all decode through it, so an answer's text is put together in one place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safealign.data.records import Message
from safealign.decoding import DecodedRow, Evaluation, Run
from safealign.decoding.decoded import FAILED, REFUSED
from safealign.decoding.options import CalibratedThresholds
from safealign.decoding.rows import Prompt
from safealign.decoding.stopping import StopFilter
from safealign.decoding.streaming import TextStream, text_of
from safealign.judges.refusal import RefusalMatcher
from safealign.ranking.choosing import Ranking

Conversation = Sequence[Message | Mapping[str, str]]


@dataclass(frozen=True)
class Output:
    """An answer.

    `text`: what was generated (a caller's prefix is not part of it, nor a stop string; what an intervention inserts
    is shown whole). `refused`: the fixed refusal
    was given, or the refusal matcher hits `text`. `intervened_at`: the generated token after which the
    rules stepped in (0: at the start), None if they did not. `p`: probability that the request is malicious, None
    without safety. `trace`: every evaluation of the safety token. `finish_reason`: `stop`, `length`, `refusal`,
    `cancelled` or `error` (its prompt could not be fed: what was raised says why). `tokens`: the generated ids, end of
    turn included. `prompt_tokens`: rows of the rendered prompt. `thresholds`: probabilities by name (query, window,
    prefix, token) that the verdicts were compared with, None for those that were off. `candidates`: with `best_of`, all
    answers that were drawn, and `ranking` their scores; this one is `candidates[ranking.best]`.
    """

    text: str
    refused: bool
    intervened_at: int | None
    trace: tuple[Evaluation, ...]
    p: float | None
    finish_reason: str
    tokens: tuple[int, ...]
    prompt_tokens: int = 0
    thresholds: Mapping[str, float | None] | None = None
    candidates: tuple[Output, ...] = ()
    ranking: Ranking | None = None

    @property
    def n_tokens(self) -> int:
        """Number of tokens that stand, end of turn included; withdrawn ones are not counted."""
        return len(self.tokens)


@dataclass(frozen=True)
class StreamEvent:
    """New text, never withdrawn later; the last event has no new text but the whole `output`.

    `p`: the newest verdict when it came, None without safety.
    """

    text: str
    output: Output | None = None
    p: float | None = None


class Answer:
    """A row of a session with the text that it has shown so far."""

    def __init__(self, row: DecodedRow, tokenizer: Any) -> None:
        self.row = row
        self.output: Output | None = None
        self._shown = 0
        self._text = TextStream(tokenizer, _prefix_ids(row.prompt))
        self._filter = StopFilter(row.stops)

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return self.row.finish is not None

    @property
    def p(self) -> float | None:
        """The newest verdict so far; None without safety."""
        return self.row.trace[-1].p if self.row.trace else None

    def new_text(self, eos_ids: frozenset[int]) -> str:
        """Text that became certain since the last call."""
        piece, inserted = "", min(self.row.spared, self.row.shown)
        if inserted > self._shown:
            piece = self._filter.spare(self._text.push(_spoken(self.row, self._shown, inserted, eos_ids)))
            self._shown = inserted
        piece += self._filter.push(self._text.push(_spoken(self.row, self._shown, self.row.shown, eos_ids)))
        self._shown = self.row.shown
        if self.done:
            piece += self._filter.push(self._text.finish()) + self._filter.finish()
        return piece


class Session:
    """Answers under one set of rules in one batch: `submit` at any time, `step` while `busy`, `cancel` at any time.

    A row's text does not depend on its neighbours. Not thread-safe: one thread submits, steps and cancels.
    """

    def __init__(self, run: Run, tokenizer: Any, eos_ids: frozenset[int]) -> None:
        self.run, self._tokenizer, self._eos_ids = run, tokenizer, eos_ids
        self._open: list[Answer] = []
        self._matcher = RefusalMatcher(run.options.trigger)
        self._thresholds = shown_thresholds(run)

    @property
    def busy(self) -> bool:
        """Whether any answer is unfinished."""
        return self.run.busy

    def submit(self, prompt: Prompt, seed: int = 0, **options: Any) -> Answer:
        """Queues a prompt. `options`: what a row may have of its own (`decoding.options.PER_ROW`).

        Raises ConfigError for an unknown or impossible option, or one that the whole batch shares.
        """
        chosen = self.run.options.override(options) if options else None
        answer = Answer(self.run.submit(prompt, seed, chosen), self._tokenizer)
        self._open.append(answer)
        return answer

    def step(self) -> list[tuple[Answer, StreamEvent]]:
        """One more token for every live answer; what became certain, and the output of each that finished.

        Raises what the engine raises. Where `failed` then names answers, it was their prompts that could not be fed, or
        they came to verdicts or logits that are no numbers: the others can be stepped on.
        """
        self.run.step()
        return self.events()

    def events(self) -> list[tuple[Answer, StreamEvent]]:
        """What became certain since the last call, without another step."""
        found = []
        for answer in self._open:
            piece = answer.new_text(self._eos_ids)
            if piece:
                found.append((answer, StreamEvent(piece, p=answer.p)))
            if answer.done:
                answer.output = self.output_of(answer.row)
                found.append((answer, StreamEvent("", answer.output)))
        self._open = [answer for answer in self._open if not answer.done]
        return found

    def failed(self) -> list[Answer]:
        """The answers that could not be fed or judged; no event will come for them."""
        found = [answer for answer in self._open if answer.row.finish == FAILED]
        self._open = [answer for answer in self._open if answer not in found]
        return found

    def cancel(self, answer: Answer) -> None:
        """Ends an answer where it is and frees its row; its last event comes with the next `events`."""
        self.run.cancel(answer.row)

    def output_of(self, row: DecodedRow) -> Output:
        """The whole answer of a finished row."""
        text = answer_text(row, self._tokenizer)
        return Output(
            text=text,
            refused=row.finish == REFUSED or self._matcher.refused(text),
            intervened_at=row.intervened_at,
            trace=tuple(row.trace),
            p=row.trace[0].p if row.trace else None,
            finish_reason=row.finish or "",
            tokens=tuple(row.tokens),
            prompt_tokens=row.prompt.n_text,
            thresholds=self._thresholds,
        )


def answer_text(row: DecodedRow, tokenizer: Any) -> str:
    """The text of a finished row, without an end of turn or a stop string."""
    return Answer(row, tokenizer).new_text(row.eos_ids)


def row_text(row: DecodedRow, tokenizer: Any, eos_ids: frozenset[int]) -> str:
    """Everything that a row shows, stop strings included."""
    return text_of(tokenizer, _spoken(row, 0, row.shown, eos_ids), _prefix_ids(row.prompt))


def shown_thresholds(run: Run) -> dict[str, float | None] | None:
    """The rules' thresholds as probabilities, None for one that nothing is compared with; None without safety."""
    if not run.options.safety:
        return None
    p = (run.decoder.thresholds or CalibratedThresholds()).p
    logits = {name: getattr(run.rules, f"theta_{name}") for name in ("query", "window", "prefix", "token")}
    if run.rules.schedule.largest_gap() is None:  # no window of an answer is ever looked at
        logits["window"] = None
    return {name: None if logit is None else p(logit) for name, logit in logits.items()}


def _spoken(row: DecodedRow, start: int, end: int, eos_ids: frozenset[int]) -> list[int]:
    """Ids from `start` to `end`, without an end of turn."""
    return [token for token in row.tokens[start:end] if token not in eos_ids]


def _prefix_ids(prompt: Prompt) -> tuple[int, ...]:
    return prompt.rendered.input_ids[prompt.n_text - prompt.prefix :] if prompt.prefix else ()
