"""The four rules of decoding with explicit safety signals, as a pure state machine for one row.

Source: Li & Kim, ICML 2025 (arXiv 2505.17072); confirmation windows, the caller's prefix and the withdrawal
are this project's definitions where the paper is silent. Nothing here touches a model: the decoder asks which
safety rows to evaluate (`opening`, `probes`), hands in their logits (`open`, `step`) and is told what to do
(`Action`).

Tokens are counted as in the method: g_1 … g_t are generated (inserted ids count), g_0, g_-1, … g_{1-m} are
the m tokens of a caller's prefix. Thresholds are logits; None disables one.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from safealign.decoding.schedule import Annealing, Schedule


class State(StrEnum):
    """What a row believes about its answer."""

    BENIGN = "benign"
    PENDING = "pending"
    REFUSING = "refusing"


class ProbeKind(StrEnum):
    """Why a safety row is evaluated."""

    REQUEST = "request"  # p_0, row 0 of the layout
    PREFIX = "prefix"  # a window over a caller's prefix
    WINDOW = "window"  # rule 2
    CONFIRM = "confirm"  # rule 3
    REFRESH = "refresh"  # rule 1, and the slot of an intervention
    TOKEN = "token"  # no safety row: the token head on a generated token's own state, where it stirs


class Dependency(StrEnum):
    """How much the answer depends on the verdict: attention only, trigger, or stop."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class ActionKind(StrEnum):
    """What the decoder does after a step."""

    CONTINUE = "continue"
    REFUSE = "refuse"  # withdraw to `keep`, evaluate `refresh` with x_keep fed again, insert the trigger
    STOP = "stop"  # withdraw to `keep`, end with the fixed refusal
    FREEZE = "freeze"  # evaluate `refresh`, keep the text


@dataclass(frozen=True, slots=True)
class Probe:
    """A safety row to evaluate over g_start … g_end, both included (empty when end < start).

    A request or refresh row attends to the request's content besides. `writes`: its keys and values replace
    the slot's. `alarm`: for a confirmation, the step S whose window it confirms.
    """

    kind: ProbeKind
    start: int = 1
    end: int = 0
    writes: bool = False
    alarm: int | None = None


@dataclass(frozen=True, slots=True)
class RowState:
    """A row's place in the machine: `since` is S while PENDING (and what was kept after), `count` the tally
    of τ.
    """

    state: State = State.BENIGN
    since: int = 0
    count: int = 0
    frozen: bool = False

    def shown(self, step: int) -> int:
        """How many of the tokens g_1..g_step may be shown: PENDING ones after S are held back."""
        return min(step, self.since) if self.state is State.PENDING else step


@dataclass(frozen=True, slots=True)
class Action:
    """An instruction to the decoder; `keep` is the number of generated tokens that stay."""

    kind: ActionKind = ActionKind.CONTINUE
    keep: int = 0
    refresh: Probe | None = None


@dataclass(frozen=True, slots=True)
class Transition:
    """The row's next state and what to do."""

    row: RowState
    action: Action = field(default_factory=Action)


@dataclass(frozen=True)
class Rules:
    """The rules with their parameters; `record` evaluates every window of calibration and never intervenes."""

    schedule: Schedule = field(default_factory=Annealing)
    dependency: Dependency = Dependency.MEDIUM
    tau: int = 3
    r1: int = 10
    r2: int = 10
    r3: int = 10
    theta_query: float | None = None
    theta_window: float | None = None
    theta_prefix: float | None = None
    theta_token: float | None = None
    record: bool = False

    # ---- the request and the caller's prefix -------------------------------------------------------------

    def opening(self, prefix: int = 0) -> tuple[Probe, ...]:
        """The rows of the prompt's forward: the request (writes the slot), then a prefix's windows (probes)."""
        ends = sorted({*range(self.r2, prefix + 1, self.r2), prefix} - {0})
        windows = (Probe(ProbeKind.PREFIX, max(1, end - self.r2 + 1) - prefix, end - prefix) for end in ends)
        return (Probe(ProbeKind.REQUEST, writes=True), *windows)

    def open(self, logits: Sequence[float]) -> Transition:
        """Judges the logits of `opening`: p_0 against θ_query, every prefix window against θ_prefix."""
        query, prefix = logits[0], logits[1:]
        if not (self._fires(query, self.theta_query) or any(self._fires(p, self.theta_prefix) for p in prefix)):
            return Transition(RowState())
        refusing = RowState(State.REFUSING)
        if self.dependency is Dependency.LOW:
            return Transition(refusing)
        kind = ActionKind.STOP if self.dependency is Dependency.HIGH else ActionKind.REFUSE
        return Transition(refusing, Action(kind, 0))

    # ---- one generated token -----------------------------------------------------------------------------

    def probes(
        self, row: RowState, step: int, *, prefix: int = 0, final: bool = False, woken: Container[int] = ()
    ) -> tuple[Probe, ...]:
        """The safety rows to evaluate once g_step is fed. `final`: end of sequence or token limit. `woken`: steps
        at which the token head asked for a window (see `wakes`).
        """
        if row.state is State.REFUSING:
            return self._rule_1(row, step, final)
        window = (self._rule_2(step, prefix),) if step in woken or self._scheduled(step, final) else ()
        if self.record:
            return (*self._recorded(step, prefix, woken), *window)
        if row.state is State.PENDING:
            return (self._rule_3(row.since, step, prefix), *window)
        return window

    def step(
        self,
        row: RowState,
        step: int,
        verdicts: Sequence[tuple[Probe, float]],
        *,
        final: bool = False,
        ended: bool = False,
    ) -> Transition:
        """Moves on with the logits of `probes`. `ended`: g_step ends the turn (it is never kept by a
        refusal).
        """
        if row.state is State.REFUSING or self.record:
            return Transition(row)
        row = self._next(row, step, verdicts)
        if row.state is not State.PENDING or (row.count < self.tau and not final):
            return Transition(row)
        return self._intervene(row, step, ended)

    def wakes(self, row: RowState, step: int, logit: float) -> bool:
        """Whether the token head's logit at g_step asks for a window at the next step: a cascade, not yet refusing."""
        if not self.schedule.listens or row.state is State.REFUSING:
            return False
        return self.theta_token is not None and logit >= self.theta_token

    def refusing_after(self, row: RowState, inserted: int) -> tuple[Probe, ...]:
        """The refresh row due right after `inserted` trigger ids at the very start of an answer (rule 1)."""
        return self._rule_1(row, inserted, final=False)

    # ---- the parts ---------------------------------------------------------------------------------------

    def _next(self, row: RowState, step: int, verdicts: Sequence[tuple[Probe, float]]) -> RowState:
        """Counts a confirmation, ends a false alarm, raises an alarm; a false alarm's step may raise the
        next.
        """
        by_kind = {probe.kind: logit for probe, logit in verdicts}
        if row.state is State.PENDING:
            if self._fires(by_kind[ProbeKind.CONFIRM], self.theta_window):
                return replace(row, count=row.count + 1)
            row = RowState()
        window = by_kind.get(ProbeKind.WINDOW)
        if window is not None and self._fires(window, self.theta_window):
            return RowState(State.PENDING, since=step, count=1)
        return row

    def _intervene(self, row: RowState, step: int, ended: bool) -> Transition:
        keep = min(row.since, step - 1) if ended else row.since
        if self.dependency is Dependency.LOW:
            refresh = Probe(ProbeKind.REFRESH, 1, step, writes=True)
            return Transition(
                RowState(State.REFUSING, row.since, frozen=True), Action(ActionKind.FREEZE, step, refresh)
            )
        refusing = RowState(State.REFUSING, keep, frozen=True)
        if self.dependency is Dependency.HIGH:
            return Transition(refusing, Action(ActionKind.STOP, keep))
        refresh = Probe(ProbeKind.REFRESH, 1, keep, writes=True)
        return Transition(refusing, Action(ActionKind.REFUSE, keep, refresh))

    def _rule_1(self, row: RowState, step: int, final: bool) -> tuple[Probe, ...]:
        if row.frozen or final or step > self.r1:
            return ()
        return (Probe(ProbeKind.REFRESH, 1, min(step, self.r1), writes=True),)

    def _rule_2(self, step: int, prefix: int) -> Probe:
        return Probe(ProbeKind.WINDOW, max(1 - prefix, step - self.r2 + 1), step, writes=True)

    def _rule_3(self, alarm: int, step: int, prefix: int) -> Probe:
        start = max(1 - prefix, alarm - self.r2 + 1)
        return Probe(ProbeKind.CONFIRM, start, min(step, alarm + self.r3), alarm=alarm)

    def _recorded(self, step: int, prefix: int, woken: Container[int]) -> tuple[Probe, ...]:
        """Rule-3 windows of every step with a window of its own that could still be PENDING."""
        alarms = range(max(1, step - self.tau + 1), step)
        looked = (alarm for alarm in alarms if alarm in woken or self.schedule.is_scheduled(alarm))
        return tuple(self._rule_3(alarm, step, prefix) for alarm in looked)

    def _scheduled(self, step: int, final: bool) -> bool:
        return self.schedule.is_scheduled(step) or (final and self.schedule.largest_gap() is not None)

    def _fires(self, logit: float, theta: float | None) -> bool:
        # What is no number is below nothing: a broken verdict counts as an alarm.
        return not self.record and theta is not None and not logit < theta
