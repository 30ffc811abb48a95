"""SafeModel, the public class: load, generate, stream, score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    Prompt,
    Recording,
    RowSettings,
    Run,
)
from safealign.errors import ConfigError, DataError
from safealign.layout import build_layout, request_row
from safealign.modeling.attach import SafetyParts
from safealign.modeling.checkpoint import SafetyCard
from safealign.modeling.features import layout_logits
from safealign.modeling.loading import load_export
from safealign.modeling.precision import serving_dtype
from safealign.session import Answer, Conversation, Output, Session, StreamEvent, row_text

Progress = Callable[[int], None]
BATCH_SIZE = 32


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
        run, rows = self._decode(conversations, chosen, batch_size, progress, record=False)
        session = self._session(run)
        return [session.output_of(row) for row in rows]

    def stream(self, messages: Conversation, **options: Any) -> Iterator[StreamEvent]:
        """Yields text as it becomes certain; text that may still be withdrawn is held back.

        Closing the iterator ends the answer at once.
        """
        chosen = self.options.override(options)
        session = self.session(1, **options)
        answer = session.submit(self.prompts([messages])[0], _seeds(chosen, 1)[0])
        return self._events(session, answer)

    def session(self, n_rows: int = BATCH_SIZE, *, longest: int = 256, room: int = 256, **options: Any) -> Session:
        """A batch of at most `n_rows` answers that come and go (see `session.Session`); `options` as in `generate`.

        `longest`, `room`: tokens of a prompt and of an answer that the cache starts with; it grows where they do not
        suffice. While the session steps, the model must be in evaluation mode and used by no one else.
        """
        if n_rows < 1:
            raise ConfigError(f"a session needs at least 1 row, got {n_rows}")
        chosen = self.options.override(options)
        return self._session(Run(self._decoder(chosen, record=False), n_rows, longest, room, eager=True))

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
        _, rows = self._decode(conversations, chosen, batch_size, progress, record=True)
        return [row.recording(row_text(row, self.tokenizer, self.renderer.eos_ids)) for row in rows]

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
        prompts = [prompt.rendered for prompt in self.prompts(conversations)]
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
    ) -> tuple[Run, list[DecodedRow]]:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        decoder, prompts = self._decoder(options, record), self.prompts(conversations)
        with _evaluating(self.hf):
            run, rows = decoder.start(prompts, _seeds(options, len(prompts)), batch_size)
            reported = 0
            while True:
                if progress is not None and run.finished > reported:
                    progress(run.finished - reported)
                reported = run.finished
                if not run.busy:
                    return run, rows
                run.step()

    def _events(self, session: Session, answer: Answer) -> Iterator[StreamEvent]:
        try:
            while answer.output is None:
                with _evaluating(self.hf):
                    events = session.step()
                yield from (event for _, event in events)
        finally:
            session.cancel(answer)

    def _session(self, run: Run) -> Session:
        return Session(run, self.tokenizer, self.renderer.eos_ids)

    def _decoder(self, options: DecodingOptions, record: bool) -> Decoder:
        if options.safety and self.parts is None:
            raise ConfigError("this model has no safety parts: decode it with safety=False, or load an export")
        if options.safety and options.schedule == "cascade" and self.parts is not None and not self.parts.token_head:
            raise ConfigError("schedule='cascade' listens to a token head, and this model has none: choose another")
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
            tokenizer=self.tokenizer,
        )

    def prompts(self, conversations: Sequence[Conversation]) -> list[Prompt]:
        """Rendered prompts, as `Session.submit` takes them. Raises DataError for what cannot be rendered."""
        prompts = []
        for index, messages in enumerate(conversations):
            if isinstance(messages, str | Mapping | Message):
                raise DataError(
                    f"conversation {index} is no list of messages: pass [{{'role': 'user', 'content': …}}], "
                    "and a list of such lists to the batch methods"
                )
            prompts.append(Prompt(self.renderer.render(messages, close=False)))
        return prompts


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


@contextmanager
def _evaluating(lm: Any) -> Iterator[None]:
    """Dropout off while decoding; a model in the middle of training goes on as it was."""
    training = lm.training
    lm.eval()
    try:
        yield
    finally:
        lm.train(training)
