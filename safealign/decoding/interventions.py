"""What verdicts entail: withdrawing, inserting a refusal, freezing the slot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from safealign.decoding.decoded import REFUSED, DecodedRow
from safealign.decoding.engine import Fed
from safealign.decoding.logits import NewestLogits
from safealign.decoding.planning import Feed
from safealign.decoding.policy import Policy
from safealign.decoding.rules import Action, ActionKind, Rules, State, Transition

if TYPE_CHECKING:
    from safealign.decoding.decoder import Engine


class Interventions:
    """Carries out the rules' actions on the rows of a run; `p` turns a logit into a probability."""

    def __init__(
        self, engine: Engine, rules: Rules, policy: Policy, p: Callable[[float], float], logits: NewestLogits
    ) -> None:
        self._engine, self._rules, self._policy, self._p, self._logits = engine, rules, policy, p, logits

    def carry_out(self, moves: Sequence[tuple[DecodedRow, Transition]]) -> None:
        """Carries out the actions; rows that feed anything for it share one forward."""
        feeds: list[tuple[DecodedRow, Feed]] = []
        for row, move in moves:
            if row.state.state is not State.REFUSING and move.row.state is State.REFUSING:
                row.intervened_at = move.row.since
            row.state = move.row
            feed = self._begin(row, move.action)
            if feed is not None:
                feeds.append((row, feed))
            row.shown = row.state.shown(len(row.tokens))
        inserting = [entry for entry in feeds if entry[1].tokens]
        if inserting:
            fed = self._engine.forward([feed for _, feed in inserting])
            self._logits.keep([row for row, _ in inserting], fed.logits)
            self._note_refresh(inserting, fed)
        freezing = [entry for entry in feeds if not entry[1].tokens]
        if freezing:
            self._note_refresh(freezing, self._engine.forward([feed for _, feed in freezing]))

    def _begin(self, row: DecodedRow, action: Action) -> Feed | None:
        """Withdraws and inserts; returns what has to be fed for it."""
        if action.kind is ActionKind.CONTINUE:
            return None
        if action.kind is ActionKind.FREEZE:
            return self._freeze(row, action)
        del row.tokens[action.keep :]
        row.stopped = False
        mid_answer = bool(row.prompt.prefix or action.keep)
        if action.kind is ActionKind.STOP:
            row.tokens += self._policy.refusal_ids(mid_answer=mid_answer)
            row.spared = len(row.tokens)
            row.end(REFUSED)
            return None
        trigger = self._policy.trigger_ids(mid_answer=mid_answer)
        feed = self._refusal_feed(row, action, trigger)
        row.tokens += trigger
        row.spared = len(row.tokens)
        if row.final:
            row.end()
            return None
        return feed

    def _refusal_feed(self, row: DecodedRow, action: Action, trigger: Sequence[int]) -> Feed:
        if action.refresh is None:  # REFUSING from the start: nothing to take back, rule 1 goes on after the trigger
            return Feed(row.place, trigger, self._rules.refusing_after(row.state, len(trigger)))
        last = row.tokens[-1] if row.tokens else row.prompt.rendered.input_ids[-1]
        self._engine.withdraw(row.place, row.prompt.n_text + action.keep - 1)
        return Feed(row.place, (last, *trigger), (action.refresh,), sees_new=True)

    def _freeze(self, row: DecodedRow, action: Action) -> Feed | None:
        if row.final:
            row.end()
            return None
        assert action.refresh is not None
        return Feed(row.place, (), (action.refresh,))

    def _note_refresh(self, entries: Sequence[tuple[DecodedRow, Feed]], fed: Fed) -> None:
        for (row, feed), logits in zip(entries, fed.verdicts, strict=True):
            forwards = 0 if feed.tokens else 1
            for probe, logit in zip(feed.probes, logits, strict=True):
                row.note(probe.end, [(probe, logit)], row.state, forwards, self._p)
