"""The batched decoder: drives the rules of every row with the cached engine's verdicts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from safealign.decoding.engine import Fed
from safealign.decoding.options import PER_ROW, CalibratedThresholds, DecodingOptions
from safealign.decoding.planning import Feed
from safealign.decoding.policy import Policy, RefusalTexts, TriggerEncoder
from safealign.decoding.rows import EngineRow, Prompt
from safealign.decoding.rules import Action, ActionKind, Probe, RowState, Rules, State, Transition
from safealign.decoding.sampler import Draw, RowNoise, Sampler
from safealign.decoding.stopping import StopStrings
from safealign.decoding.trace import Evaluation, Recording
from safealign.errors import ConfigError

END_OF_TURN, TOKEN_LIMIT, REFUSED, CANCELLED = "stop", "length", "refusal", "cancelled"


class Engine(Protocol):
    """What the decoder needs of an engine; `engine.CachedEngine` is the one that ships."""

    def open(self, n_rows: int, longest: int, room: int, *, reach: int = 0, listen: bool = False) -> None:
        """Starts a batch of at most `n_rows`."""
        ...

    def admit(self, prompts: Sequence[Prompt]) -> list[EngineRow]:
        """Gives each prompt a free row."""
        ...

    def prefill(self, feeds: Sequence[Feed]) -> Fed:
        """Feeds the prompts and evaluates their safety rows."""
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


@dataclass(eq=False)
class DecodedRow:
    """One answer in the making. `tokens` are g_1 … g_t, an end-of-turn token included.

    `shown`: how many of them may be shown (nothing shown is ever withdrawn). `intervened_at`: the g index at
    which the row turned to REFUSING, None if it did not. `woken`: steps at which the token head asked for a
    window; `stirs`: its logit of each token, if recorded. `finish`: `stop`, `length`, `refusal` (the fixed one)
    or `cancelled` once done.
    """

    prompt: Prompt
    noise: RowNoise
    options: DecodingOptions
    stops: StopStrings
    tokens: list[int] = field(default_factory=list)
    state: RowState = field(default_factory=RowState)
    trace: list[Evaluation] = field(default_factory=list)
    shown: int = 0
    intervened_at: int | None = None
    finish: str | None = None
    stopped: bool = False  # the newest tokens complete a stop string
    unfed: bool = False  # the newest token was chosen and not yet fed
    woken: set[int] = field(default_factory=set)
    stirs: list[float] = field(default_factory=list)
    place: EngineRow = field(init=False)  # the row's place in the engine, while it is live

    @property
    def request_logit(self) -> float | None:
        """Logit of p_0; None without safety."""
        return self.trace[0].logit if self.trace else None

    def recording(self, text: str = "") -> Recording:
        """What calibration reads, for a row decoded with `record`."""
        return Recording.of(self.trace, len(self.tokens), text, self.stirs)


class Decoder:
    """Decodes batches of prompts under one set of options.

    `encoder` renders the refusal texts; `tokenizer` is needed for stop strings alone; `eos_ids` end an answer;
    `record` evaluates every window that calibration needs and never intervenes. Raises ConfigError where a
    threshold is `calibrated` and there is no calibration.
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
    ) -> None:
        self.engine, self.options, self.tokenizer = engine, options, tokenizer
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


class Run:
    """A batch of at most `n_rows` under way: `live` rows are being decoded, others wait for a free place.

    `longest` and `room` size the cache: tokens of a prompt and of an answer (it grows where they do not suffice).
    `eager`: a waiting prompt takes a free place at once, as a server's should; else they are filled when a quarter
    of the rows has finished, several in one forward.
    """

    def __init__(self, decoder: Decoder, n_rows: int, longest: int, room: int, *, eager: bool = False) -> None:
        self.decoder, self.engine, self.rules = decoder, decoder.engine, decoder.rules
        self.options, self.n_rows, self.eager = decoder.options, n_rows, eager
        self.live: list[DecodedRow] = []
        self.finished = 0
        self._waiting: deque[DecodedRow] = deque()
        self._logits: dict[DecodedRow, torch.Tensor] = {}
        self._newest: tuple[list[DecodedRow], torch.Tensor] = ([], torch.empty(0))
        listen = self.options.safety and (self.rules.schedule.listens or self.rules.record)
        self.engine.open(n_rows, longest, room, reach=self._reach(), listen=listen)

    @property
    def busy(self) -> bool:
        """Whether any row is live or waiting."""
        return bool(self.live or self._waiting)

    @property
    def waiting(self) -> int:
        """Number of rows that wait for a place."""
        return len(self._waiting)

    def submit(self, prompt: Prompt, seed: int, options: DecodingOptions | None = None) -> DecodedRow:
        """Queues a prompt. `options` may differ from the batch's in what is a row's own (`options.PER_ROW`).

        Raises ConfigError for other differences, and for stop strings without a tokenizer.
        """
        chosen = options or self.options
        if not self.options.shares_rules_with(chosen):
            raise ConfigError(f"rows of one batch share their rules; only {', '.join(PER_ROW)} may differ")
        if chosen.stop and self.decoder.tokenizer is None:
            raise ConfigError("stop strings need a tokenizer, and this decoder has none")
        stops = StopStrings(self.decoder.tokenizer, chosen.stop)
        row = DecodedRow(prompt, RowNoise(seed), chosen, stops)
        self._waiting.append(row)
        return row

    def sort(self) -> None:
        """Puts waiting prompts of similar lengths together, the longest first."""
        self._waiting = deque(sorted(self._waiting, key=lambda row: -row.prompt.n_text))

    def cancel(self, row: DecodedRow) -> None:
        """Takes a waiting or live row out; what it has shown stands, the rest is withdrawn. A finished one stays
        as it is.
        """
        if row.finish is not None:
            return
        del row.tokens[row.shown :]
        if row in self._waiting:
            self._waiting.remove(row)
            row.finish = CANCELLED
            self.finished += 1
            return
        row.finish = CANCELLED
        self._retire()

    def step(self) -> None:
        """Feeds and judges every live row's newest token, admits what waits, and gives every live row one more.

        A token may be shown as soon as it is chosen: its own verdict can only withdraw what comes after it, or an
        end of turn.
        """
        self._advance([row for row in self.live if row.unfed])
        self._retire()
        self.admit()
        self._sample()
        self._retire()

    def _advance(self, rows: Sequence[DecodedRow]) -> None:
        if not rows:
            return
        verdicts = self._feed([(row, self._probes(row)) for row in rows])
        self._react([(row, self._judge(row, found)) for row, found in zip(rows, verdicts, strict=True)])

    def _reach(self) -> int:
        """How many of a row's newest tokens may be read again: a window while it is confirmed (r3 does not bind,
        τ does), or what an inserted trigger follows.
        """
        trigger = self.decoder.policy.trigger_ids(mid_answer=True)
        return max(self.rules.r2 + self.rules.tau, len(trigger) + 1)

    # ---- the prompt ----------------------------------------------------------------------------------------

    def admit(self) -> None:
        """Fills free rows from the queue and feeds their prompts."""
        while self._waiting and len(self.live) < self.n_rows and (self.eager or len(self.live) <= self.n_rows * 3 // 4):
            count = min(len(self._waiting), self.n_rows - len(self.live))
            rows = [self._waiting.popleft() for _ in range(count)]
            for row, place in zip(rows, self.engine.admit([row.prompt for row in rows]), strict=True):
                row.place = place
            self.live += rows
            self._open(rows)
            self._retire()

    def _open(self, rows: Sequence[DecodedRow]) -> None:
        safety = self.options.safety
        feeds = [
            Feed(
                row.place,
                row.prompt.rendered.input_ids,
                self.rules.opening(row.prompt.prefix) if safety else (),
                True,
            )
            for row in rows
        ]
        fed = self.engine.prefill(feeds)
        self._keep_logits(rows, fed)
        if not safety:
            return
        moves = []
        for row, feed, logits in zip(rows, feeds, fed.verdicts, strict=True):
            move = self.rules.open(logits)
            self._note(row, 0, list(zip(feed.probes, logits, strict=True)), move.row, 0)
            moves.append((row, move))
        self._react(moves)

    # ---- one token -----------------------------------------------------------------------------------------

    def _sample(self) -> None:
        if not self.live:
            return
        logits = self._newest_logits()
        draws = [Draw(row.options, row.noise, row.tokens, row.prompt.rendered.input_ids) for row in self.live]
        chosen = self.decoder.sampler.choose(logits, draws)
        for row, token in zip(self.live, chosen, strict=True):
            row.tokens.append(token)
            row.stopped, row.unfed = row.stops.hit(row.tokens), True
            # An end of turn is the one token that its own verdict can take back: a refusal would take its place.
            row.shown = row.state.shown(len(row.tokens) - self._ended(row))
            if self._final(row) and not self._probes(row):
                self._finish(row, self._natural_end(row))

    def _newest_logits(self) -> torch.Tensor:
        """`[N, V]` of the live rows, without a copy where they were fed in this very order."""
        rows, logits = self._newest
        if rows == self.live:
            return logits
        return torch.stack([self._logits[row] for row in self.live])

    def _probes(self, row: DecodedRow) -> tuple[Probe, ...]:
        if not self.options.safety:
            return ()
        final = self._final(row)
        return self.rules.probes(row.state, len(row.tokens), prefix=row.prompt.prefix, final=final, woken=row.woken)

    def _feed(self, entries: Sequence[tuple[DecodedRow, tuple[Probe, ...]]]) -> list[list[tuple[Probe, float]]]:
        """Feeds the newest token of each row and evaluates its probes, in one forward or in two."""
        rows = [row for row, _ in entries]
        if self.options.fused:
            fed = self.engine.forward([Feed(row.place, row.tokens[-1:], probes) for row, probes in entries])
            self._listen(rows, fed)
            return [list(zip(p, v, strict=True)) for (_, p), v in zip(entries, fed.verdicts, strict=True)]
        self._listen(rows, self.engine.forward([Feed(row.place, row.tokens[-1:]) for row in rows]))
        probing = [(row, probes) for row, probes in entries if probes]
        if not probing:
            return [[] for _ in entries]
        found = self.engine.forward([Feed(row.place, (), probes) for row, probes in probing]).verdicts
        by_row = {row: list(zip(p, v, strict=True)) for (row, p), v in zip(probing, found, strict=True)}
        return [by_row.get(row, []) for row in rows]

    def _listen(self, rows: Sequence[DecodedRow], fed: Fed) -> None:
        """Keeps the logits; where the token head stirs at a row's newest token, the next step gets a window."""
        self._keep_logits(rows, fed)
        if fed.stirs is None:
            return
        for row, logit in zip(rows, fed.stirs, strict=True):
            if self.rules.record:
                row.stirs.append(logit)
            if self.rules.wakes(row.state, len(row.tokens), logit):
                row.woken.add(len(row.tokens) + 1)

    def _judge(self, row: DecodedRow, verdicts: list[tuple[Probe, float]]) -> Transition:
        step, final = len(row.tokens), self._final(row)
        row.unfed = False
        if not self.options.safety:
            move = Transition(row.state)
        else:
            move = self.rules.step(row.state, step, verdicts, final=final, ended=self._ended(row))
        self._note(row, step, verdicts, move.row, 0 if self.options.fused else 1)
        if move.action.kind is ActionKind.CONTINUE and final:
            self._finish(row, self._natural_end(row))
        return move

    # ---- what verdicts entail ------------------------------------------------------------------------------

    def _react(self, moves: Sequence[tuple[DecodedRow, Transition]]) -> None:
        """Carries out the actions; rows that feed anything for it share one forward."""
        feeds: list[tuple[DecodedRow, Feed]] = []
        for row, move in moves:
            if row.state.state is not State.REFUSING and move.row.state is State.REFUSING:
                row.intervened_at = move.row.since
            row.state = move.row
            feed = self._carry_out(row, move.action)
            if feed is not None:
                feeds.append((row, feed))
            row.shown = row.state.shown(len(row.tokens))
        inserting = [entry for entry in feeds if entry[1].tokens]
        if inserting:
            fed = self.engine.forward([feed for _, feed in inserting])
            self._keep_logits([row for row, _ in inserting], fed)
            self._note_refresh(inserting, fed)
        freezing = [entry for entry in feeds if not entry[1].tokens]
        if freezing:
            self._note_refresh(freezing, self.engine.forward([feed for _, feed in freezing]))

    def _carry_out(self, row: DecodedRow, action: Action) -> Feed | None:
        """Withdraws and inserts; returns what has to be fed for it."""
        if action.kind is ActionKind.CONTINUE:
            return None
        if action.kind is ActionKind.FREEZE:
            return self._freeze(row, action)
        del row.tokens[action.keep :]
        row.stopped = False
        mid_answer = bool(row.prompt.prefix or action.keep)
        if action.kind is ActionKind.STOP:
            row.tokens += self.decoder.policy.refusal_ids(mid_answer=mid_answer)
            self._finish(row, REFUSED)
            return None
        trigger = self.decoder.policy.trigger_ids(mid_answer=mid_answer)
        feed = self._refusal_feed(row, action, trigger)
        row.tokens += trigger
        row.stopped = row.stops.hit(row.tokens, len(trigger))
        if self._final(row):
            self._finish(row, self._natural_end(row))
            return None
        return feed

    def _refusal_feed(self, row: DecodedRow, action: Action, trigger: Sequence[int]) -> Feed:
        if action.refresh is None:  # REFUSING from the start: nothing to take back, rule 1 goes on after the trigger
            return Feed(row.place, trigger, self.rules.refusing_after(row.state, len(trigger)))
        last = row.tokens[-1] if row.tokens else row.prompt.rendered.input_ids[-1]
        self.engine.withdraw(row.place, row.prompt.n_text + action.keep - 1)
        return Feed(row.place, (last, *trigger), (action.refresh,), sees_new=True)

    def _freeze(self, row: DecodedRow, action: Action) -> Feed | None:
        if self._final(row):
            self._finish(row, self._natural_end(row))
            return None
        assert action.refresh is not None
        return Feed(row.place, (), (action.refresh,))

    # ---- bookkeeping ---------------------------------------------------------------------------------------

    def _ended(self, row: DecodedRow) -> bool:
        return bool(row.tokens) and row.tokens[-1] in self.decoder.eos_ids

    def _final(self, row: DecodedRow) -> bool:
        return self._ended(row) or row.stopped or len(row.tokens) >= row.options.max_new_tokens

    def _natural_end(self, row: DecodedRow) -> str:
        return END_OF_TURN if self._ended(row) or row.stopped else TOKEN_LIMIT

    def _finish(self, row: DecodedRow, reason: str) -> None:
        row.finish, row.shown = reason, len(row.tokens)

    def _keep_logits(self, rows: Sequence[DecodedRow], fed: Fed) -> None:
        if fed.logits is not None:
            self._newest = (list(rows), fed.logits)
            self._logits.update(zip(rows, fed.logits, strict=True))

    def _note(
        self,
        row: DecodedRow,
        step: int,
        verdicts: Iterable[tuple[Probe, float]],
        state: RowState,
        forwards: int,
    ) -> None:
        p = self.decoder.thresholds.p
        row.trace += [Evaluation.of(probe, step, x, p(x), str(state.state), forwards) for probe, x in verdicts]

    def _note_refresh(self, entries: Sequence[tuple[DecodedRow, Feed]], fed: Fed) -> None:
        for (row, feed), logits in zip(entries, fed.verdicts, strict=True):
            forwards = 0 if feed.tokens else 1
            for probe, logit in zip(feed.probes, logits, strict=True):
                self._note(row, probe.end, [(probe, logit)], row.state, forwards)

    def _retire(self) -> None:
        for row in [row for row in self.live if row.finish is not None]:
            self.live.remove(row)
            self.finished += 1
            self._logits.pop(row, None)
            self.engine.close(row.place)
