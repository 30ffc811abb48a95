"""Rules whose verdicts follow a script instead of the head, so that a history takes any path."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields

from safealign.decoding.rules import Probe, ProbeKind, RowState, Rules, Transition


@dataclass(frozen=True)
class ScriptedRules(Rules):
    """Random verdicts that depend on `seed` and the probe alone; `rates` are the chances of a hit by kind."""

    seed: int = 0
    query_rate: float = 0.2
    prefix_rate: float = 0.1
    window_rate: float = 0.3
    confirm_rate: float = 0.7
    wake_rate: float = 0.3

    @classmethod
    def like(cls, rules: Rules, seed: int, **rates: float) -> ScriptedRules:
        """The same rules with thresholds at 0 and scripted verdicts."""
        kept = {field.name: getattr(rules, field.name) for field in fields(Rules)}
        kept |= {"theta_query": 0.0, "theta_window": 0.0, "theta_prefix": 0.0, "theta_token": 0.0}
        return cls(**kept, seed=seed, **rates)

    def open(self, logits: Sequence[float]) -> Transition:
        """As `Rules.open`, on scripted logits."""
        query = self._draw(Probe(ProbeKind.REQUEST), self.query_rate)
        windows = [self._draw(Probe(ProbeKind.PREFIX, i), self.prefix_rate) for i in range(len(logits) - 1)]
        return super().open([query, *windows])

    def step(
        self,
        row: RowState,
        step: int,
        verdicts: Sequence[tuple[Probe, float]],
        *,
        final: bool = False,
        ended: bool = False,
    ) -> Transition:
        """As `Rules.step`, on scripted logits."""
        rates = {ProbeKind.WINDOW: self.window_rate, ProbeKind.CONFIRM: self.confirm_rate}
        scripted = [(probe, self._draw(probe, rates.get(probe.kind, 0.0))) for probe, _ in verdicts]
        return super().step(row, step, scripted, final=final, ended=ended)

    def wakes(self, row: RowState, step: int, logit: float) -> bool:
        """As `Rules.wakes`, on scripted logits."""
        return super().wakes(row, step, self._draw(Probe(ProbeKind.TOKEN, step, step), self.wake_rate))

    def _draw(self, probe: Probe, rate: float) -> float:
        drawn = random.Random(f"{self.seed}/{probe.kind}/{probe.start}/{probe.end}/{probe.alarm}").random()
        return 1.0 if drawn < rate else -1.0
