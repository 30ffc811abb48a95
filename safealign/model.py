"""SafeModel, the public class: load, generate, stream, score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from safealign.data.records import Message
from safealign.data.rendering import Renderer
from safealign.decoding import (
    CachedEngine,
    CalibratedThresholds,
    DecodedRow,
    Decoder,
    DecodingOptions,
    Evaluation,
    Prompt,
    Recording,
    RowSettings,
)
from safealign.decoding.decoder import REFUSED
from safealign.decoding.streaming import TextStream, text_of
from safealign.errors import ConfigError, DataError
from safealign.judges.refusal import RefusalMatcher
from safealign.layout import build_layout, request_row
from safealign.modeling.attach import SafetyParts
from safealign.modeling.checkpoint import SafetyCard
from safealign.modeling.features import layout_logits
from safealign.modeling.loading import load_export
from safealign.modeling.precision import serving_dtype

Conversation = Sequence[Message | Mapping[str, str]]
Progress = Callable[[int], None]
BATCH_SIZE = 32


@dataclass(frozen=True)
class Output:
    """An answer.

    `text`: what was generated (a caller's prefix is not part of it). `refused`: the fixed refusal was given,
    or the refusal matcher hits `text`. `intervened_at`: the generated token after which the rules stepped in
    (0: at the start), None if they did not. `p`: probability that the request is malicious, None without
    safety. `trace`: every evaluation of the safety token. `finish_reason`: `stop`, `length` or `refusal`.
    `tokens`: the generated ids, end of turn included.
    """

    text: str
    refused: bool
    intervened_at: int | None
    trace: tuple[Evaluation, ...]
    p: float | None
    finish_reason: str
    tokens: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        """Number of tokens that stand, end of turn included; withdrawn ones are not counted."""
        return len(self.tokens)


@dataclass(frozen=True)
class StreamEvent:
    """New text, never withdrawn later; the last event has no new text but the whole `output`."""

    text: str
    output: Output | None = None


class SafeModel:
    """A causal LM with its safety parts, decoded under the rules.

    `lm` may be a PEFT wrapper; `parts` and `card` None make a bare model that decodes with `safety=False`
    only. Every decoding option (see `decoding.DecodingOptions`) is a keyword of `generate`, `generate_batch`
    and `stream`; what is not given comes from the export.
    """

    def __init__(
        self, lm: Any, tokenizer: Any, parts: SafetyParts | None = None, card: SafetyCard | None = None
    ) -> None:
        self.hf, self.tokenizer, self.parts, self.card = lm, tokenizer, parts, card
        self.renderer = Renderer(tokenizer)
        self.options = _default_options(card) if parts is not None else DecodingOptions(safety=False)
        self.thresholds = _thresholds(card)
        self.rows = RowSettings(card.placement, card.window_sees_query) if card is not None else RowSettings()

    # ---- answers -------------------------------------------------------------------------------------------

    def generate(self, messages: Conversation, **options: Any) -> Output:
        """Answers a conversation; one that ends with an assistant turn is continued (a prefill).

        Raises ConfigError for an unknown or impossible option, DataError for messages that cannot be
        rendered.
        """
        return self.generate_batch([messages], **options)[0]

    def generate_batch(
        self,
        conversations: Sequence[Conversation],
        *,
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[Output]:
        """Answers in the given order, each row in its own state, `batch_size` at a time; row i has seed + i.

        `progress` is called with the number of answers just finished.
        """
        chosen = self.options.override(options)
        rows = self._decode(conversations, chosen, batch_size, progress, record=False)
        matcher = RefusalMatcher(chosen.trigger)
        return [self._output(row, matcher) for row in rows]

    def stream(self, messages: Conversation, **options: Any) -> Iterator[StreamEvent]:
        """Yields text as it becomes certain; text that may still be withdrawn is held back."""
        chosen = self.options.override(options)
        decoder, prompts = self._decoder(chosen, record=False), self._prompts([messages])
        return self._events(decoder, prompts, chosen)

    def record_batch(
        self,
        conversations: Sequence[Conversation],
        *,
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[Recording]:
        """Answers with interventions off and every window recorded that calibration needs."""
        chosen = self.options.override(options)
        rows = self._decode(conversations, chosen, batch_size, progress, record=True)
        return [row.recording(self._text(row)) for row in rows]

    # ---- verdicts on requests ------------------------------------------------------------------------------

    def score(self, messages: Conversation) -> float:
        """Probability that the request is malicious, from row 0 alone; an answer in `messages` does not
        matter.
        """
        return self.score_batch([messages])[0]

    def score_batch(self, conversations: Sequence[Conversation], batch_size: int = BATCH_SIZE) -> list[float]:
        """`score` of each conversation."""
        p = (self.thresholds or CalibratedThresholds()).p
        return [p(logit) for logit in self.score_logits(conversations, batch_size)]

    def score_logits(self, conversations: Sequence[Conversation], batch_size: int = BATCH_SIZE) -> list[float]:
        """The requests' raw logits, which thresholds are compared with."""
        if self.parts is None:
            raise ConfigError("this model has no safety head to score with: load an export of safealign")
        if not conversations:
            return []
        prompts = [prompt.rendered for prompt in self._prompts(conversations)]
        layouts = [build_layout(prompt, [request_row(prompt, self.rows.placement)]) for prompt in prompts]
        with _evaluating(self.hf):
            found = layout_logits(self.parts, [prompt.input_ids for prompt in prompts], layouts, batch_size)
        return [float(logits[0]) for logits in found]

    # ---- inside --------------------------------------------------------------------------------------------

    def _decode(
        self,
        conversations: Sequence[Conversation],
        options: DecodingOptions,
        batch_size: int,
        progress: Progress | None,
        record: bool,
    ) -> list[DecodedRow]:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        decoder, prompts = self._decoder(options, record), self._prompts(conversations)
        if not prompts:
            return []
        with _evaluating(self.hf):
            run = decoder.start(prompts, _seeds(options, len(prompts)), batch_size)
            reported = 0
            while True:
                finished = run.finished
                if progress is not None and finished > reported:
                    progress(finished - reported)
                reported = finished
                if not run.live:
                    return run.rows
                run.step()

    def _events(self, decoder: Decoder, prompts: list[Prompt], options: DecodingOptions) -> Iterator[StreamEvent]:
        with _evaluating(self.hf):
            run = decoder.start(prompts, _seeds(options, 1))
        row, shown = run.rows[0], 0
        text = TextStream(self.tokenizer, _prefix_ids(row.prompt))
        while True:
            piece = text.push(self._spoken(row, shown))
            shown = row.shown
            if row.finish is not None:
                piece += text.finish()
            if piece:
                yield StreamEvent(piece)
            if row.finish is not None:
                yield StreamEvent("", self._output(row, RefusalMatcher(options.trigger)))
                return
            with _evaluating(self.hf):
                run.step()

    def _decoder(self, options: DecodingOptions, record: bool) -> Decoder:
        if options.safety and self.parts is None:
            raise ConfigError("this model has no safety parts: decode it with safety=False, or load an export")
        parts = self.parts if options.safety else None
        lm = self.hf if self.parts is None else self.parts.lm
        engine = CachedEngine(lm, parts, self.rows, gate=options.gate)
        return Decoder(
            engine,
            options,
            encoder=self.renderer,
            eos_ids=self.renderer.eos_ids,
            calibrated=self.thresholds,
            record=record,
        )

    def _prompts(self, conversations: Sequence[Conversation]) -> list[Prompt]:
        prompts = []
        for index, messages in enumerate(conversations):
            if isinstance(messages, str | Mapping | Message):
                raise DataError(
                    f"conversation {index} is no list of messages: pass [{{'role': 'user', 'content': …}}], "
                    "and a list of such lists to the batch methods"
                )
            prompts.append(Prompt(self.renderer.render(messages, close=False)))
        return prompts

    def _output(self, row: DecodedRow, matcher: RefusalMatcher) -> Output:
        text = self._text(row)
        return Output(
            text=text,
            refused=row.finish == REFUSED or matcher.refused(text),
            intervened_at=row.intervened_at,
            trace=tuple(row.trace),
            p=row.trace[0].p if row.trace else None,
            finish_reason=row.finish or "",
            tokens=tuple(row.tokens),
        )

    def _text(self, row: DecodedRow) -> str:
        return text_of(self.tokenizer, self._spoken(row, 0), _prefix_ids(row.prompt))

    def _spoken(self, row: DecodedRow, start: int) -> list[int]:
        """Shown ids from `start` on, without an end of turn."""
        return [token for token in row.tokens[start : row.shown] if token not in self.renderer.eos_ids]


def load(
    path: str | Path,
    *,
    dtype: str = "fp32",
    attn: str = "sdpa",
    device: str | None = None,
    offline: bool | None = None,
) -> SafeModel:
    """Loads an export (folder or hub id): verified, without remote code.

    `dtype`: fp32, bf16, fp16, or auto (bf16 where the device is good at it). `device` None takes a GPU if
    there is one. Raises CheckpointError for an export that is incomplete, damaged or of another format.
    """
    weights = serving_dtype(dtype)
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_export(path, dtype=weights, attn=attn, device=place, offline=offline)
    return SafeModel(loaded.lm, loaded.tokenizer, loaded.parts, loaded.card)


def _default_options(card: SafetyCard | None) -> DecodingOptions:
    if card is None:
        return DecodingOptions()
    return DecodingOptions().override({**card.decoding, "trigger": card.trigger, "refusal": card.refusal})


def _thresholds(card: SafetyCard | None) -> CalibratedThresholds | None:
    if card is None or not card.thresholds:
        return None
    temperature = float(card.calibration.get("temperature") or 1.0)
    return CalibratedThresholds(**card.thresholds, temperature=temperature)


def _seeds(options: DecodingOptions, n: int) -> list[int]:
    first = int(torch.randint(2**62, ()).item()) if options.seed is None else options.seed
    return [first + i for i in range(n)]


def _prefix_ids(prompt: Prompt) -> tuple[int, ...]:
    return prompt.rendered.input_ids[prompt.n_text - prompt.prefix :] if prompt.prefix else ()


@contextmanager
def _evaluating(lm: Any) -> Iterator[None]:
    """Dropout off while decoding; a model in the middle of training goes on as it was."""
    training = lm.training
    lm.eval()
    try:
        yield
    finally:
        lm.train(training)
