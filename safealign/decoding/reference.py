"""The reference decoder, for tests only: at each step the whole layout with all slot versions, without a
cache.

It shares the rules with the batched decoder and nothing else: layouts come from `layout.build_layout`, masks
from `layout.masks.build`, verdicts from `modeling.features`. One row at a time, one full forward per step or
more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from safealign.decoding.policy import Policy
from safealign.decoding.rows import Prompt, RowSettings
from safealign.decoding.rules import Action, ActionKind, Probe, ProbeKind, RowState, Rules
from safealign.layout import (
    Layout,
    Rendered,
    RowKind,
    SafetyRow,
    build_layout,
    refresh_row,
    request_row,
    window_row,
)
from safealign.layout.collate import collate_layouts
from safealign.modeling.attach import SafetyParts
from safealign.modeling.features import batch_logits, plan_for


@dataclass
class _Version:
    """A version of the slot and the first text row that sees it."""

    row: SafetyRow
    from_row: int


@dataclass
class ReferenceAnswer:
    """`tokens` as in `DecodedRow`; `verdicts`: every probe with its step and logit, in the order of
    evaluation.
    """

    tokens: list[int] = field(default_factory=list)
    verdicts: list[tuple[int, Probe, float]] = field(default_factory=list)
    intervened_at: int | None = None
    finish: str | None = None
    layout: Layout | None = None


class ReferenceDecoder:
    """Decodes one prompt by full recompute. `choose(logits, step)` picks the next token (greedy by default)."""

    def __init__(
        self,
        parts: SafetyParts,
        settings: RowSettings,
        rules: Rules,
        policy: Policy,
        eos_ids: Iterable[int],
        *,
        gate: bool = True,
        max_new_tokens: int = 32,
        choose: Callable[[torch.Tensor, int], int] | None = None,
    ) -> None:
        self.parts, self.settings, self.rules, self.policy = parts, settings, rules, policy
        self.eos_ids, self.gate, self.max_new_tokens = frozenset(eos_ids), gate, max_new_tokens
        self.choose = choose or (lambda logits, step: int(logits.argmax()))

    def decode(self, prompt: Prompt) -> ReferenceAnswer:
        """The answer with every verdict on the way."""
        return _Answering(self, prompt).run()


class _Answering:
    """One answer in the making: the text, the versions of the slot so far, the row's state."""

    def __init__(self, decoder: ReferenceDecoder, prompt: Prompt) -> None:
        self.decoder, self.prompt, self.rules = decoder, prompt, decoder.rules
        self.answer = ReferenceAnswer()
        self.state = RowState()
        self.woken: set[int] = set()
        self.versions: list[_Version] = []

    def run(self) -> ReferenceAnswer:
        """Decodes to the end."""
        opening = self.rules.opening(self.prompt.prefix)
        self.versions.append(_Version(self._row(opening[0]), self.prompt.rendered.query_end))
        logits = self._evaluate(opening[1:], 0, first=opening[0])
        move = self.rules.open(logits)
        self.state = move.row
        if self.state.state == "refusing":
            self.answer.intervened_at = 0
        self._act(move.action, final=False)
        while self.answer.finish is None:
            self._step()
        return self.answer

    def _step(self) -> None:
        tokens = self.answer.tokens
        tokens.append(self.decoder.choose(self._next_logits(), len(tokens) + 1))
        step, ended = len(tokens), tokens[-1] in self.decoder.eos_ids
        final = ended or step >= self.decoder.max_new_tokens
        prefix = self.prompt.prefix
        probes = self.rules.probes(self.state, step, prefix=prefix, final=final, woken=self.woken)
        logits = self._evaluate(probes, step) if probes else []
        if self.rules.schedule.listens and not final and self.rules.wakes(self.state, step, self._stir()):
            self.woken.add(step + 1)
        move = self.rules.step(self.state, step, list(zip(probes, logits, strict=True)), final=final, ended=ended)
        if move.row.state == "refusing" and self.state.state != "refusing":
            self.answer.intervened_at = move.row.since
        self.state = move.row
        self._write(probes, step)
        self._act(move.action, final)
        if final and move.action.kind in (ActionKind.CONTINUE, ActionKind.FREEZE):
            self.answer.finish = "stop" if ended else "length"

    def _act(self, action: Action, final: bool) -> None:
        if action.kind is ActionKind.FREEZE and action.refresh is not None and not final:
            self._evaluate((action.refresh,), action.keep)
            self._write((action.refresh,), action.keep)
        if action.kind is ActionKind.STOP:
            self._withdraw(action.keep)
            mid = bool(action.keep or self.prompt.prefix)
            self.answer.tokens += self.decoder.policy.refusal_ids(mid_answer=mid)
            self.answer.finish = "refusal"
        if action.kind is ActionKind.REFUSE:
            self._refuse(action)

    def _refuse(self, action: Action) -> None:
        self._withdraw(action.keep)
        mid = bool(action.keep or self.prompt.prefix)
        self.answer.tokens += self.decoder.policy.trigger_ids(mid_answer=mid)
        step = len(self.answer.tokens)
        if step >= self.decoder.max_new_tokens:
            self.answer.finish = "length"
            return
        if action.refresh is not None:
            last_kept = self.prompt.n_text + action.keep - 1
            self.versions.append(_Version(self._row(action.refresh), last_kept))
            self._evaluate((), action.keep, first=action.refresh)
            return
        for probe in self.rules.refusing_after(self.state, step):
            self._evaluate((probe,), step)
            self._write((probe,), step)

    def _withdraw(self, keep: int) -> None:
        del self.answer.tokens[keep:]
        last_kept = self.prompt.n_text + keep - 1
        self.versions = [version for version in self.versions if version.from_row <= last_kept]

    def _write(self, probes: Sequence[Probe], step: int) -> None:
        """Rows fed after `step` see what its probes wrote."""
        for probe in probes:
            if probe.writes:
                self.versions.append(_Version(self._row(probe), self.prompt.n_text + step))

    def _evaluate(self, probes: Sequence[Probe], step: int, first: Probe | None = None) -> list[float]:
        """Logits of the newest version (when `first` names its probe) and of `probes`, noted in the answer."""
        layout, capture, batch, _ = self._forward([self._row(probe) for probe in probes])
        found = batch_logits(self.decoder.parts, capture, batch)[0].tolist()
        own = len(probes) + (first is not None)
        logits = [float(x) for x in found[len(found) - own :]]
        named = (*((first,) if first is not None else ()), *probes)
        self.answer.verdicts += [(step, probe, logit) for probe, logit in zip(named, logits, strict=True)]
        self.answer.layout = layout
        return logits

    def _stir(self) -> float:
        """The token head's logit at the newest token."""
        head = self.decoder.parts.token_head
        assert head is not None
        _, capture, _, _ = self._forward([])
        states = capture.at(self.decoder.parts.token_depths)
        return float(head(states[:, len(self._whole().input_ids) - 1].flatten(-2))[0])

    def _next_logits(self) -> torch.Tensor:
        return self._forward([])[3]

    @torch.no_grad()
    def _forward(self, probes: list[SafetyRow]) -> tuple[Layout, Any, Any, torch.Tensor]:
        parts, rendered = self.decoder.parts, self._whole()
        layout = build_layout(
            rendered,
            [*(version.row for version in self.versions), *probes],
            gate=self.decoder.gate,
            versions=range(len(self.versions)),
            from_row=[version.from_row for version in self.versions],
        )
        batch = collate_layouts([layout])
        with parts.armed(plan_for(batch)) as capture:
            out = parts.lm(input_ids=torch.tensor([rendered.input_ids]), use_cache=False)
        return layout, capture, batch, out.logits[0, -1].float()

    def _whole(self) -> Rendered:
        """The prompt and everything generated so far."""
        prompt = self.prompt.rendered
        return replace(prompt, input_ids=(*prompt.input_ids, *self.answer.tokens))

    def _row(self, probe: Probe) -> SafetyRow:
        """The layout's own row for `probe`; g_1 … g_k of a refresh row start after a caller's prefix."""
        settings, whole = self.decoder.settings, self._whole()
        span = self.prompt.span(probe.start, probe.end)
        if probe.kind is ProbeKind.REQUEST:
            return request_row(whole, settings.placement)
        if probe.kind is ProbeKind.REFRESH:
            return refresh_row(replace(whole, query_end=self.prompt.n_text - 1), probe.end, settings.placement)
        row = window_row(whole, span.start, span.end, settings.placement, settings.window_sees_query)
        assert row.kind is RowKind.WINDOW
        return row
