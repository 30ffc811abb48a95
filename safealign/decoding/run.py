"""A batch under way: prompts wait, rows get one token after another, verdicts are judged, finished rows leave."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from safealign.decoding.decoded import CANCELLED, FAILED, DecodedRow
from safealign.decoding.engine import Fed
from safealign.decoding.interventions import Interventions
from safealign.decoding.logits import NewestLogits
from safealign.decoding.options import PER_ROW, DecodingOptions
from safealign.decoding.planning import Feed
from safealign.decoding.rows import Prompt
from safealign.decoding.rules import ActionKind, Probe, Transition
from safealign.decoding.sampler import Draw, RowNoise
from safealign.decoding.stopping import StopStrings
from safealign.errors import ConfigError, DataError

if TYPE_CHECKING:
    from safealign.decoding.decoder import Decoder

logger = logging.getLogger("safealign.decoding")


class Run:
    """A batch of at most `n_rows` under way: `live` rows are being decoded, others wait for a free place.

    `longest` and `room` size a static cache: tokens of a prompt and of an answer (it grows where they do not suffice).
    `eager`: a waiting prompt takes a free place at once, as a server's should; else they are filled when a quarter
    of the rows has finished, several in one forward.
    """

    def __init__(self, decoder: Decoder, n_rows: int, longest: int, room: int, *, eager: bool = False) -> None:
        self.decoder, self.engine, self.rules = decoder, decoder.engine, decoder.rules
        self.options, self.n_rows, self.eager = decoder.options, n_rows, eager
        self.live: list[DecodedRow] = []
        self.finished = 0
        self._waiting: deque[DecodedRow] = deque()
        self._one_by_one = 0  # so many prompts are fed alone: they failed together
        self._logits = NewestLogits()
        self._interventions = Interventions(self.engine, self.rules, decoder.policy, decoder.thresholds.p, self._logits)
        listen = self.options.safety and (self.rules.schedule.listens or self.rules.record)
        static, chunk = self.options.cache == "static", self.options.prefill_chunk
        self.engine.open(n_rows, longest, room, reach=self._reach(), listen=listen, static=static, chunk=chunk)

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
        row = DecodedRow(prompt, RowNoise(seed), chosen, stops, self.decoder.eos_ids)
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
        end (of the turn, or of a stop string).

        Raises DataError where a row came to verdicts or logits that are no numbers. `finish` says which; it is out of
        the batch, and the run can be stepped on for the others.
        """
        broken = self._advance([row for row in self.live if row.unfed])
        self._retire()
        self.admit()
        broken += self._sample()
        self._retire()
        if broken:
            raise self._not_finite(broken)

    def _advance(self, rows: Sequence[DecodedRow]) -> list[DecodedRow]:
        """Feeds and judges; returns the rows that no verdict can be had of, as failed."""
        if not rows:
            return []
        verdicts = self._feed([(row, self._probes(row)) for row in rows])
        moves, broken = [], []
        for row, found in zip(rows, verdicts, strict=True):
            if all(math.isfinite(logit) for _, logit in found):
                moves.append((row, self._judge(row, found)))
            else:
                broken.append(row)
        self._interventions.carry_out(moves)
        return self._fail(broken)

    @staticmethod
    def _fail(rows: list[DecodedRow]) -> list[DecodedRow]:
        for row in rows:
            row.finish = FAILED
        return rows

    def _not_finite(self, rows: Sequence[DecodedRow]) -> DataError:
        dtype = str(getattr(self.engine, "dtype", "")).removeprefix("torch.")
        return DataError(
            f"{len(rows)} answer{'s' * (len(rows) > 1)} came to verdicts or logits that are no finite numbers"
            f"{f' in {dtype}' * bool(dtype)}: load the model with dtype=bf16 or fp32, and check its weights"
        )

    def _reach(self) -> int:
        """How many of a row's newest tokens may be read again: a window while it is confirmed (r3 does not bind,
        τ does), or what an inserted trigger follows.
        """
        trigger = self.decoder.policy.trigger_ids(mid_answer=True)
        return max(self.rules.r2 + self.rules.tau, len(trigger) + 1)

    # ---- the prompt ----------------------------------------------------------------------------------------

    def admit(self) -> None:
        """Fills free rows from the queue and feeds their prompts.

        What the engine raises is raised for one row, whose `finish` says so. It is out of the batch then, and the run
        can be stepped on; the rows that were to be fed with it still wait.
        """
        while self._waiting and len(self.live) < self.n_rows and (self.eager or len(self.live) <= self.n_rows * 3 // 4):
            count = 1 if self._one_by_one else min(len(self._waiting), self.n_rows - len(self.live))
            rows = [self._waiting.popleft() for _ in range(count)]
            for row, place in zip(rows, self.engine.admit([row.prompt for row in rows]), strict=True):
                row.place = place
            self.live += rows
            self._one_by_one = max(0, self._one_by_one - 1)
            try:
                self._open(rows)
            except Exception as error:
                self._take_out(rows)
                if len(rows) == 1:
                    rows[0].finish = FAILED
                    self.finished += 1
                    raise
                # The kind alone: its words may quote a prompt.
                logger.warning("%d prompts failed together (%s): fed one by one", len(rows), type(error).__name__)
                self._waiting.extendleft(reversed(rows))
                self._one_by_one = len(rows)
            self._retire()

    def _take_out(self, rows: Sequence[DecodedRow]) -> None:
        """Undoes the admission of the newest rows."""
        for row in reversed(rows):  # the last one first, so that nobody has to move
            self.live.remove(row)
            self._logits.drop(row)
            self.engine.close(row.place)
            row.restart()

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
        # An open gate lets the prompt's last rows see its verdict, so that both need one forward.
        apart = safety and not self.options.fused and not self.options.gate
        fed = self.engine.prefill(feeds, apart=apart)
        if not all(math.isfinite(logit) for found in fed.verdicts for logit in found) or _nan_rows(fed.logits):
            raise self._not_finite(rows)
        self._logits.keep(rows, fed.logits)
        if not safety:
            return
        moves = []
        for row, feed, logits in zip(rows, feeds, fed.verdicts, strict=True):
            move = self.rules.open(logits)
            row.note(0, zip(feed.probes, logits, strict=True), move.row, int(apart), self.decoder.thresholds.p)
            moves.append((row, move))
        self._interventions.carry_out(moves)

    # ---- one token -----------------------------------------------------------------------------------------

    def _sample(self) -> list[DecodedRow]:
        """Gives every live row one more token; returns the rows that none can be chosen for, as failed."""
        if not self.live:
            return []
        logits = self._logits.of(self.live)
        if found := _nan_rows(logits):
            broken = self._fail([self.live[index] for index in found])
            self._retire()
            return broken + self._sample()
        draws = [Draw(row.options, row.noise, row.tokens, row.prompt.rendered.input_ids) for row in self.live]
        chosen = self.decoder.sampler.choose(logits, draws)
        for row, token in zip(self.live, chosen, strict=True):
            row.tokens.append(token)
            row.stopped, row.unfed = row.stops.hit(row.tokens, row.spared), True
            # An end is the one token that its own verdict can take back: a refusal would take its place.
            row.shown = row.state.shown(len(row.tokens) - row.ended)
            if row.final and not self._probes(row) and not self._is_looked_at(row):
                row.end()
        return []

    def _is_looked_at(self, row: DecodedRow) -> bool:
        """Whether the state of the newest token is wanted. Of an end of turn it is not."""
        return self.decoder.observer is not None and row.tokens[-1] not in row.eos_ids

    def _probes(self, row: DecodedRow) -> tuple[Probe, ...]:
        if not self.options.safety:
            return ()
        final = row.final
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
        self._logits.keep(rows, fed.logits)
        if fed.stirs is None:
            return
        for row, logit in zip(rows, fed.stirs, strict=True):
            if self.rules.record:
                row.stirs.append(logit)
            if self.rules.wakes(row.state, len(row.tokens), logit):
                row.woken.add(len(row.tokens) + 1)

    def _judge(self, row: DecodedRow, verdicts: list[tuple[Probe, float]]) -> Transition:
        step, final = len(row.tokens), row.final
        row.unfed = False
        if not self.options.safety:
            move = Transition(row.state)
        else:
            move = self.rules.step(row.state, step, verdicts, final=final, ended=row.ended)
        row.note(step, verdicts, move.row, 0 if self.options.fused else 1, self.decoder.thresholds.p)
        if move.action.kind is ActionKind.CONTINUE and final:
            row.end()
        return move

    def _retire(self) -> None:
        for row in [row for row in self.live if row.finish is not None]:
            self.live.remove(row)
            self.finished += 1
            self._logits.drop(row)
            self.engine.close(row.place)
            if self.decoder.observer is not None and row.finish != FAILED:
                self.decoder.observer.settle(row)


def _nan_rows(logits: torch.Tensor | None) -> list[int]:
    """Rows of `[N, V]` that are not a number: one column tells, since each is a sum over the whole state."""
    return [] if logits is None else torch.isnan(logits[:, 0]).nonzero().flatten().tolist()
