"""What happened while a row was decoded: one entry for each evaluation of the safety token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from safealign.decoding.rules import Probe, ProbeKind


@dataclass(frozen=True)
class Cost:
    """What an evaluation cost: safety `rows`, and `forwards` of their own (0: it rode in the text's forward)."""

    rows: int = 1
    forwards: int = 0


@dataclass(frozen=True)
class Evaluation:
    """One verdict.

    `position`: step t after which it was taken (0: the prompt's forward). `span`: g indices `(first, last)`,
    both included, 1 the first generated token and 0 the last of a caller's prefix; None for the request.
    `state`: the row's state after the step. `wrote`: whether it became the slot. `alarm`: for a confirmation
    (rule 3), the step S whose window it confirms.
    """

    position: int
    span: tuple[int, int] | None
    kind: str
    p: float
    logit: float
    state: str
    wrote: bool
    cost: Cost = field(default_factory=Cost)
    alarm: int | None = None

    @classmethod
    def of(cls, probe: Probe, position: int, logit: float, p: float, state: str, forwards: int) -> Evaluation:
        """The entry of a probe's verdict."""
        span = (probe.start, probe.end) if probe.end >= probe.start else None
        return cls(position, span, str(probe.kind), p, logit, state, probe.writes, Cost(1, forwards), probe.alarm)

    def to_dict(self) -> dict[str, Any]:
        """Flat form for JSON."""
        row = dict(self.__dict__)
        row["span"] = None if self.span is None else list(self.span)
        row["cost"] = dict(self.cost.__dict__)
        return row


@dataclass(frozen=True)
class Recording:
    """What calibration reads from an answer decoded with interventions off.

    `request`: p_0's logit. `prefix`: logits of a caller's prefix's windows. `windows`: for each scheduled
    step S the logits of S's own window and of rule 3's at S+1, …, min(S+τ-1, T). `length`: T, the end of the
    turn counted. `stirs`: the token head's logit of each token; empty for a model without one.
    """

    request: float
    prefix: tuple[float, ...]
    windows: dict[int, tuple[float, ...]]
    length: int
    text: str = ""
    stirs: tuple[float, ...] = ()

    @property
    def prefix_statistic(self) -> float:
        """The largest logit of the prefix's windows; -inf without a prefix."""
        return max(self.prefix, default=-math.inf)

    @property
    def window_statistic(self) -> float:
        """max over S of the smallest logit of its windows: an intervention implies that it reached θ_window."""
        return max((min(logits) for logits in self.windows.values()), default=-math.inf)

    @classmethod
    def of(
        cls, trace: Sequence[Evaluation], length: int, text: str = "", stirs: Sequence[float] = ()
    ) -> Recording:
        """Sorts a recorded trace by scheduled step."""
        windows: dict[int, list[float]] = {}
        for entry in trace:
            if entry.kind in (ProbeKind.WINDOW, ProbeKind.CONFIRM):
                step = entry.position if entry.alarm is None else entry.alarm
                windows.setdefault(step, []).append(entry.logit)
        return cls(
            request=next(entry.logit for entry in trace if entry.kind == ProbeKind.REQUEST),
            prefix=tuple(entry.logit for entry in trace if entry.kind == ProbeKind.PREFIX),
            windows={step: tuple(logits) for step, logits in windows.items()},
            length=length,
            text=text,
            stirs=tuple(stirs),
        )
