"""SafeModel, the public class: load, generate, stream, score."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from safealign.data.records import Message
from safealign.data.rendering import Renderer
from safealign.decoding import (
    AnswerStates,
    CachedEngine,
    CalibratedThresholds,
    DecodedRow,
    Decoder,
    DecodingOptions,
    Prompt,
    Recording,
    RowSettings,
    Run,
    spoken,
)
from safealign.errors import ConfigError, DataError
from safealign.layout import Rendered, build_layout, request_row
from safealign.modeling.attach import SafetyParts
from safealign.modeling.checkpoint import SafetyCard
from safealign.modeling.features import layout_logits
from safealign.modeling.hidden import HiddenExtractor, evaluating
from safealign.modeling.loading import load_export
from safealign.modeling.precision import serving_dtype
from safealign.modeling.texts import Text
from safealign.ranking import Ranker, Ranking, Scorer, drawing, load_ranker, make_scorer, require_answers, require_count
from safealign.session import Answer, Conversation, Output, Session, StreamEvent, answer_text, row_text

if TYPE_CHECKING:
    from rich.console import Group

Progress = Callable[[int], None]
BATCH_SIZE = 32
# The newest SafeModel around each causal LM. Weak on both sides: being known here keeps neither alive.
_AROUND: weakref.WeakKeyDictionary[torch.nn.Module, weakref.ref[SafeModel]] = weakref.WeakKeyDictionary()


class SafeModel:
    """A causal LM with its safety parts, decoded under the rules.

    `lm` may be a PEFT wrapper; `parts` and `card` None make a bare model that decodes with `safety=False`
    only; `ranker` chooses among several answers. Every decoding option (see `decoding.DecodingOptions`) is a keyword
    of `generate`, `generate_batch` and `stream`; what is not given comes from the export. One thread at a time uses a
    model: `session` batches what several ask for, as the server does.
    """

    def __init__(
        self,
        lm: Any,
        tokenizer: Any,
        parts: SafetyParts | None = None,
        card: SafetyCard | None = None,
        ranker: Ranker | None = None,
    ) -> None:
        self.hf, self.tokenizer, self.parts, self.card, self.ranker = lm, tokenizer, parts, card, ranker
        self.renderer = Renderer(tokenizer)
        self.options = _default_options(card) if parts is not None else replace(_default_options(card), safety=False)
        self.thresholds = _thresholds(card)
        self.rows = RowSettings(card.placement, card.window_sees_query) if card is not None else RowSettings()
        if parts is not None:
            _AROUND.update(dict.fromkeys((lm, parts.lm), weakref.ref(self)))

    # ---- answers -------------------------------------------------------------------------------------------

    def generate(self, messages: Conversation, **options: Any) -> Output:
        """Answers a conversation; one that ends with an assistant turn is continued (a prefill).

        `best_of`, `ranker`: see `generate_batch`. Raises ConfigError for an unknown or impossible option, DataError for
        messages that cannot be rendered.
        """
        return self.generate_batch([messages], **options)[0]

    def generate_batch(
        self,
        conversations: Sequence[Conversation],
        *,
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
        best_of: int = 1,
        ranker: str | Scorer = "srr",
        **options: Any,
    ) -> list[Output]:
        """Answers in the given order, each row in its own state, `batch_size` at a time; row i has seed + i.

        `best_of` m: m answers to each conversation are drawn (seeds seed + i·m to seed + i·m + m - 1), and `ranker`
        (`srr`, `head`, `random`, or a `ranking.Scorer`) chooses; `Output.candidates` has them all. The prompt is fed
        once for them. `progress` is called with the number of answers just finished, each of the m counting.
        """
        if require_count(best_of) > 1:
            return self._best_of(conversations, best_of, ranker, batch_size, progress, options)
        chosen = self.options.override(options)
        run, rows = self._decode(self.prompts(conversations), chosen, batch_size, progress, record=False)
        session = self._session(run)
        return [session.output_of(row) for row in rows]

    def rank(self, messages: Conversation, candidates: Sequence[str], ranker: str | Scorer = "srr") -> Ranking:
        """Scores answers to a conversation, or continuations of the prefill that it ends with; higher is better.

        Raises ConfigError for a ranker that this model lacks, DataError for what cannot be rendered.
        """
        scorer, answers = self._scorer(ranker, self.options), require_answers(candidates)
        rendered = self.prompts([messages])[0].rendered
        return self._ranking(scorer, rendered, [self.renderer.content_ids(text) for text in answers])

    def stream(self, messages: Conversation, **options: Any) -> Generator[StreamEvent, None, None]:
        """Yields text as it becomes certain; text that may still be withdrawn is held back.

        Closing the iterator ends the answer at once.
        """
        chosen = self.options.override(options)
        session = self.session(1, **options)
        answer = session.submit(self.prompts([messages])[0], _seeds(chosen, 1)[0])
        return self._events(session, answer)

    def session(
        self,
        n_rows: int = BATCH_SIZE,
        *,
        longest: int = 256,
        room: int = 256,
        ends: Iterable[int] = (),
        **options: Any,
    ) -> Session:
        """A batch of at most `n_rows` answers that come and go (see `session.Session`); `options` as in `generate`.

        `longest`, `room`: tokens of a prompt and of an answer that a static cache starts with; it grows where they do
        not suffice. `ends`: ids that end an answer besides the tokenizer's and the template's own. While the session
        steps, the model must be in evaluation mode and used by no one else.
        """
        if n_rows < 1:
            raise ConfigError(f"a session needs at least 1 row, got {n_rows}")
        chosen = self.options.override(options)
        return self._session(Run(self._decoder(chosen, record=False, ends=ends), n_rows, longest, room, eager=True))

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
        _, rows = self._decode(self.prompts(conversations), chosen, batch_size, progress, record=True)
        return [row.recording(row_text(row, self.tokenizer, self.renderer.eos_ids)) for row in rows]

    # ---- hidden states -------------------------------------------------------------------------------------

    def extractor(
        self, layers: Sequence[float] = (1.0,), pool: Sequence[str] = ("last",), dtype: torch.dtype = torch.float32
    ) -> HiddenExtractor:
        """Reads this model's hidden states at any depths: see `modeling.hidden`."""
        lm = self.hf if self.parts is None else self.parts.lm
        return HiddenExtractor(lm, layers, pool, parts=self.parts, dtype=dtype)

    def generate_with_states(
        self,
        conversations: Sequence[Conversation],
        extractor: HiddenExtractor,
        *,
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[tuple[Output, torch.Tensor]]:
        """`generate_batch`, and of each conversation what `extractor` reads, `[2, pools, depths, H]`.

        The first is of the prompt (`Text.prompt`), the second of the answer (`Text.answer`), both as the answer was
        made, without a forward of their own. A fixed refusal, which no forward made, is read as the bare model does,
        and so is an answer that a stop string has cut where no token ended.
        """
        chosen, observer = self.options.override(options), AnswerStates(extractor, self._said)
        prompts = self.prompts(conversations)
        run, rows = self._decode(prompts, chosen, batch_size, progress, record=False, observer=observer)
        session = self._session(run)
        return [(session.output_of(row), _states_of(row, observer, extractor)) for row in rows]

    # ---- pictures ------------------------------------------------------------------------------------------

    def explain(self, output: Output, path: str | Path | None = None) -> Group:
        """Draws p over an answer: its windows, the thresholds, where the rules stepped in.

        Returns what `rich` prints (`rich.print(model.explain(out))`); with `path` a picture is written there too,
        its format by the ending (PNG, SVG, PDF).
        """
        from safealign.reporting.explain import Explanation, draw, picture

        found = Explanation.of(output, self.tokenizer)
        if path is not None:
            picture(found, path)
        return draw(found)

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
        with evaluating(self.hf):
            found = layout_logits(self.parts, [prompt.input_ids for prompt in prompts], layouts, batch_size)
        return [float(logits[0]) for logits in found]

    # ---- inside --------------------------------------------------------------------------------------------

    def _decode(
        self,
        prompts: Sequence[Prompt],
        options: DecodingOptions,
        batch_size: int,
        progress: Progress | None,
        record: bool,
        observer: AnswerStates | None = None,
    ) -> tuple[Run, list[DecodedRow]]:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        decoder = self._decoder(options, record, observer=observer)
        with evaluating(self.hf):
            run, rows = decoder.start(prompts, _seeds(options, len(prompts)), batch_size)
            reported = 0
            while True:
                if progress is not None and run.finished > reported:
                    progress(run.finished - reported)
                reported = run.finished
                if not run.busy:
                    return run, rows
                run.step()

    def _best_of(
        self,
        conversations: Sequence[Conversation],
        m: int,
        ranker: str | Scorer,
        batch_size: int,
        progress: Progress | None,
        given: Mapping[str, Any],
    ) -> list[Output]:
        """The best of m answers to each conversation. Each is one `Prompt`, m times: the engine feeds it once."""
        chosen = drawing(self.options, given, self.card.ranker if self.card is not None else None)
        scorer, prompts = self._scorer(ranker, chosen), self.prompts(conversations)
        # The states of text that sees a verdict are not those that a ranker learnt from: they are read again.
        seen = scorer.extractor if not (chosen.safety and chosen.gate) else None
        observer = AnswerStates(seen, self._said) if seen is not None else None
        repeated = [prompt for prompt in prompts for _ in range(m)]
        run, rows = self._decode(repeated, chosen, batch_size, progress, record=False, observer=observer)
        session, found = self._session(run), []
        for start in range(0, len(rows), m):
            some = rows[start : start + m]
            states = None
            if observer is not None and seen is not None:
                pairs = [_states_of(row, observer, seen) for row in some]
                states = torch.stack([pairs[0][0], *(pair[1] for pair in pairs)])
            ranking = self._ranking(scorer, some[0].prompt.rendered, [self._said(row) for row in some], states)
            outputs = tuple(session.output_of(row) for row in some)
            found.append(replace(outputs[ranking.best], candidates=outputs, ranking=ranking))
        return found

    def _said(self, row: DecodedRow) -> list[int]:
        """Ids of the text that is returned. Where a stop string has cut it they are those that `rank` would read: the
        token with the end of the text may hold the beginning of the stop string too.
        """
        if not row.options.stop:
            return spoken(row)
        text = answer_text(row, self.tokenizer)
        cut = text != row_text(row, self.tokenizer, row.eos_ids)
        return self.renderer.content_ids(text) if cut else spoken(row)

    def _scorer(self, name: str | Scorer, options: DecodingOptions) -> Scorer:
        lm = self.hf if self.parts is None else self.parts.lm
        return make_scorer(name, lm, self.ranker, self.parts, self.rows, options.r2)

    def _ranking(
        self,
        scorer: Scorer,
        prompt: Rendered,
        answers: Sequence[Sequence[int]],
        states: torch.Tensor | None = None,
    ) -> Ranking:
        if states is None and scorer.extractor is not None:
            states = scorer.extractor.candidates(prompt, answers)
        return Ranking(tuple(scorer.scores(prompt, answers, states)))

    def _events(self, session: Session, answer: Answer) -> Generator[StreamEvent, None, None]:
        try:
            while answer.output is None:
                with evaluating(self.hf):
                    events = session.step()
                yield from (event for _, event in events)
        finally:
            session.cancel(answer)

    def _session(self, run: Run) -> Session:
        return Session(run, self.tokenizer, run.decoder.eos_ids)

    def _decoder(
        self,
        options: DecodingOptions,
        record: bool,
        ends: Iterable[int] = (),
        observer: AnswerStates | None = None,
    ) -> Decoder:
        if options.safety and self.parts is None:
            raise ConfigError("this model has no safety parts: decode it with safety=False, or load an export")
        if problem := self.misfit(options):
            raise ConfigError(problem)
        if options.safety and options.schedule == "cascade" and self.parts is not None and not self.parts.token_head:
            raise ConfigError("schedule='cascade' listens to a token head, and this model has none: choose another")
        parts = self.parts if options.safety else None
        lm = self.hf if self.parts is None else self.parts.lm
        engine = CachedEngine(lm, parts, self.rows, gate=options.gate, observer=observer)
        return Decoder(
            engine,
            options,
            encoder=self.renderer,
            eos_ids=self.renderer.eos_ids.union(ends),
            calibrated=self.thresholds,
            record=record,
            tokenizer=self.tokenizer,
            observer=observer,
        )

    def misfit(self, options: DecodingOptions) -> str | None:
        """Why a model that was left as it was cannot be decoded like this; None where it can."""
        if self.card is None or not self.card.frozen or not options.safety:
            return None
        if options.gate:
            return (
                "gate=True: this language model was left as it was (safety.frozen) and never learnt to see the safety "
                "token, which would only disturb it: leave gate=False"
            )
        if options.dependency == "low":
            return (
                "dependency='low' acts through attention to the safety token alone, which this language model was left "
                "without (safety.frozen): take 'medium' or 'high'"
            )
        return None

    def seeds(self, n: int, **options: Any) -> list[int]:
        """The seeds of n rows decoded with these options: seed + i, or fresh ones where the seed is None."""
        return _seeds(self.options.override(options), n)

    def prompts(self, conversations: Sequence[Conversation]) -> list[Prompt]:
        """Rendered prompts, as `Session.submit` takes them. Raises DataError for what cannot be rendered."""
        prompts = []
        for index, messages in enumerate(conversations):
            if isinstance(messages, str | Mapping | Message) or not isinstance(messages, Sequence):
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
    ranker = load_ranker(loaded.path, loaded.card.ranker)
    return SafeModel(loaded.lm, loaded.tokenizer, loaded.parts, loaded.card, ranker.to(place) if ranker else None)


def safe_model_of(lm: torch.nn.Module) -> SafeModel:
    """The SafeModel around a plain causal LM (`model.hf`, or the model inside its PEFT wrapper).

    Raises ConfigError for one that was loaded without safety parts, or whose SafeModel is gone.
    """
    reference = _AROUND.get(lm)
    found = reference() if reference is not None else None
    if found is None:
        why = "has no safety parts" if reference is None else "has lost its SafeModel, which nothing refers to any more"
        raise ConfigError(
            f"this {type(lm).__name__} {why}: load the export with model = safealign.load(path), keep `model`, "
            "and call model.hf.generate(…)"
        )
    return found


def _default_options(card: SafetyCard | None) -> DecodingOptions:
    if card is None:
        return DecodingOptions()
    return DecodingOptions().override({**card.decoding, "trigger": card.trigger, "refusal": card.refusal})


def _thresholds(card: SafetyCard | None) -> CalibratedThresholds | None:
    if card is None or not card.thresholds:
        return None
    temperature = float(card.calibration.get("temperature") or 1.0)
    return CalibratedThresholds(**card.thresholds, temperature=temperature)


def _states_of(row: DecodedRow, observer: AnswerStates, extractor: HiddenExtractor) -> torch.Tensor:
    found = observer.of(row)
    if found is not None:
        return found
    rendered = row.prompt.rendered
    return torch.cat(extractor.read([Text.prompt(rendered), Text.answer(rendered, observer.said(row))]))


def _seeds(options: DecodingOptions, n: int) -> list[int]:
    first = int(torch.randint(2**62, ()).item()) if options.seed is None else options.seed
    return [first + i for i in range(n)]
