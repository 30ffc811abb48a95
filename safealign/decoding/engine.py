"""The cached engine: one batched forward that feeds text rows and evaluates safety rows, each row in its own
state.

This is the seam of the decoder: `open` a batch, `admit` rows, `forward` feeds, `withdraw`, `close`. What the
rows are for is the rules' business; who sees whom equals `layout.masks.build`, which the reference decoder
uses and tests compare.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from safealign.decoding.pooling import RowMemory
from safealign.decoding.rows import Prompt, RowSettings, safety_row
from safealign.decoding.rules import Probe
from safealign.decoding.slot import SLOT_COLUMNS, SlotCache
from safealign.layout import SafetyRow
from safealign.layout.masks import additive
from safealign.modeling.attach import RowPlan, SafetyParts

PREFILL_TOKENS = 4096  # text rows of one prefill forward


@dataclass(eq=False)
class EngineRow:
    """A row of the batch: `index` in the cache, `length` text rows fed so far, `slot` the column in use."""

    prompt: Prompt
    index: int
    length: int = 0
    slot: int = 0
    has_slot: bool = False
    memory: RowMemory = field(default_factory=RowMemory)


@dataclass(frozen=True)
class Feed:
    """What a row does in a forward: text `tokens`, then `probes` over all text fed so far.

    `sees_new`: this forward's own text rows see the slot that its writing probe makes (the prompt's forward,
    and an intervention's); otherwise they see the slot as it was.
    """

    row: EngineRow
    tokens: Sequence[int] = ()
    probes: Sequence[Probe] = ()
    sees_new: bool = False


@dataclass(frozen=True)
class Fed:
    """`logits` `[N, V]` after each feed's last token (None when no text was fed); `verdicts` per feed and
    probe.
    """

    logits: torch.Tensor | None
    verdicts: list[tuple[float, ...]]


class CachedEngine:
    """Feeds a causal LM through a slot cache. `parts` None is for a bare model, without any safety row."""

    def __init__(
        self,
        lm: nn.Module,
        parts: SafetyParts | None,
        settings: RowSettings | None = None,
        *,
        gate: bool = True,
    ) -> None:
        self.lm, self.parts, self.gate = lm, parts, gate
        self.settings = settings or RowSettings()
        embedding: torch.Tensor = lm.get_input_embeddings().weight  # type: ignore[operator]
        self.device, self.dtype = embedding.device, embedding.dtype
        self.rows: list[EngineRow] = []
        self._cache = SlotCache(0, 0)

    def open(self, n_rows: int, longest: int, room: int) -> None:
        """Starts a new batch of at most `n_rows`: prompts up to `longest` tokens, about `room` generated ones
        each.
        """
        self.rows = []
        self._cache = SlotCache(n_rows, SLOT_COLUMNS + longest + room)

    def admit(self, prompts: Sequence[Prompt]) -> list[EngineRow]:
        """Gives each prompt a free row, to be fed next. Raises ValueError when there are too few."""
        first = self._cache.admit(len(prompts))
        admitted = [EngineRow(prompt, first + at) for at, prompt in enumerate(prompts)]
        self.rows += admitted
        return admitted

    def prefill(self, feeds: Sequence[Feed]) -> Fed:
        """`forward` in portions of similar length, so that a large ragged batch does not fill the memory."""
        logits: dict[int, torch.Tensor] = {}
        verdicts: dict[int, tuple[float, ...]] = {}
        for chosen in _portions([len(feed.tokens) for feed in feeds]):
            fed = self.forward([feeds[i] for i in chosen])
            for at, index in enumerate(chosen):
                verdicts[index] = fed.verdicts[at]
                if fed.logits is not None:
                    logits[index] = fed.logits[at]
        order = range(len(feeds))
        stacked = torch.stack([logits[i] for i in order]) if logits else None
        return Fed(stacked, [verdicts[i] for i in order])

    @torch.no_grad()
    def forward(self, feeds: Sequence[Feed]) -> Fed:
        """One forward of these rows; the others stay as they are."""
        # In the cache's own order, so that a forward of all rows reads the buffers in place instead of copying them.
        order = sorted(range(len(feeds)), key=lambda i: feeds[i].row.index)
        fed = self._forward([feeds[i] for i in order])
        place = sorted(range(len(order)), key=lambda i: order[i])
        return Fed(None if fed.logits is None else fed.logits[place], [fed.verdicts[i] for i in place])

    def _forward(self, feeds: Sequence[Feed]) -> Fed:
        plan = _Plan(self, feeds)
        self._cache.aim([feed.row.index for feed in feeds], plan.columns, plan.width)
        logits, states = self._run(plan)
        for feed in feeds:
            feed.row.length += len(feed.tokens)
        nothing: list[tuple[float, ...]] = [() for _ in feeds]
        verdicts = nothing if states is None else self._judge(plan, states)
        for feed in feeds:
            if any(probe.writes for probe in feed.probes):
                feed.row.slot, feed.row.has_slot = 1 - feed.row.slot, True
        return Fed(logits, verdicts)

    def withdraw(self, row: EngineRow, length: int) -> None:
        """Rolls the row back to its first `length` text rows."""
        row.length = length
        row.memory.cut(length)

    def close(self, row: EngineRow) -> None:
        """Takes a finished row out of the batch; the last one takes its place."""
        self._cache.drop(row.index)
        row.memory = RowMemory()  # a long queue of answers must not keep every finished one's states
        last = self.rows.pop()
        if last is not row:
            self.rows[row.index] = last
            last.index = row.index

    def _run(self, plan: _Plan) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Logits `[N, V]` of the last text rows, and the head's states `[N, T+S, depths, H]`."""
        call: dict[str, Any] = {
            "input_ids": plan.input_ids,
            "past_key_values": self._cache,
            "use_cache": True,
        }
        mask = additive(plan.allowed, self.dtype).unsqueeze(1)
        if self.parts is None:
            return self._text(attention_mask=mask, position_ids=plan.positions, **call), None
        rows = RowPlan(plan.n_safety, mask, plan.positions, last_only=plan.n_text > 0)
        with self.parts.armed(rows) as capture:
            logits = self._text(**call) if plan.n_text else None
            if not plan.n_text:
                self.parts.decoder(**call)
        return logits, capture.states

    def _text(self, **call: Any) -> torch.Tensor:
        logits: torch.Tensor = self.lm(**call, logits_to_keep=1).logits[:, -1]
        return logits.float()

    def _judge(self, plan: _Plan, states: torch.Tensor) -> list[tuple[float, ...]]:
        """Remembers the text rows' states and scores the safety rows."""
        assert self.parts is not None
        wanted = self.parts.settings.pool
        kinds, rows, means, lasts = [], [], [], []
        for at, feed in enumerate(plan.feeds):
            row, n_fed = feed.row, len(feed.tokens)
            row.memory.remember(row.prompt, row.length - n_fed, states[at, plan.n_text - n_fed : plan.n_text], wanted)
            for index, safety in enumerate(plan.safety[at]):
                kinds.append(int(safety.kind))
                rows.append(states[at, plan.n_text + index])
                if "mean" in wanted:
                    means.append(row.memory.mean(safety.pools))
                if "last" in wanted:
                    lasts.append(row.memory.last(safety.last))
        if not rows:
            return [() for _ in plan.feeds]
        scores = self.parts.score(
            torch.tensor(kinds, device=states.device),
            torch.stack(rows),
            torch.stack(means) if means else None,
            torch.stack(lasts) if lasts else None,
        )
        flat = iter(scores.tolist())
        return [tuple(next(flat) for _ in row) for row in plan.safety]


class _Plan:
    """The tensors of a forward: text padded on the left, safety rows after it, padded on the right.

    A fed token's row is its text row index plus SLOT_COLUMNS; the writing probe goes to the slot column that
    is not in use; other safety rows and padding go to scratch columns behind the text.
    """

    def __init__(self, engine: CachedEngine, feeds: Sequence[Feed]) -> None:
        self.feeds = feeds
        self.safety: list[list[SafetyRow]] = [
            [safety_row(probe, feed.row.prompt, engine.settings) for probe in feed.probes] for feed in feeds
        ]
        self.n_text = max(len(feed.tokens) for feed in feeds)
        self.n_safety = max(len(rows) for rows in self.safety)
        rows = [self._row(feed, safety) for feed, safety in zip(feeds, self.safety, strict=True)]
        ids, text, columns, positions = (list(column) for column in zip(*rows, strict=True))
        device = engine.device
        self.input_ids = torch.tensor(ids, dtype=torch.long, device=device).reshape(len(feeds), self.n_text)
        self.columns = torch.tensor(columns, device=device)
        self.positions = torch.tensor(positions, device=device)
        self.width = max(max(SLOT_COLUMNS + feed.row.length, *at) for feed, at in zip(feeds, columns, strict=True)) + 1
        self.allowed = self._allowed(torch.tensor(text, device=device), engine.gate)

    def _row(self, feed: Feed, safety: Sequence[SafetyRow]) -> tuple[list[int], list[int], list[int], list[int]]:
        """Ids `[T]`, text index `[T+S]` (-1 where there is none), columns `[T+S]` and positions `[T+S]` of a
        feed.
        """
        n_fed, start = len(feed.tokens), feed.row.length
        pads, missing = self.n_text - n_fed, self.n_safety - len(safety)
        text = list(range(start, start + n_fed))
        scratch = iter(range(SLOT_COLUMNS + start + n_fed, SLOT_COLUMNS + start + self.n_text + self.n_safety))
        probe_columns = [1 - feed.row.slot if probe.writes else next(scratch) for probe in feed.probes]
        columns = [next(scratch) for _ in range(pads)] + [SLOT_COLUMNS + i for i in text] + probe_columns
        columns += [next(scratch) for _ in range(missing)]
        positions = [0] * pads + text + [row.position for row in safety] + [0] * missing
        return [0] * pads + list(feed.tokens), [-1] * pads + text + [-1] * self.n_safety, columns, positions

    def _allowed(self, text: torch.Tensor, gate: bool) -> torch.Tensor:
        """Bool `[N, T+S, width]`: causal among text, itself always, one slot for response rows, spans for
        probes.
        """
        at = torch.arange(self.width, device=text.device)
        causal = (at >= SLOT_COLUMNS) & (at <= SLOT_COLUMNS + text.unsqueeze(-1)) & (text >= 0).unsqueeze(-1)
        allowed = causal.scatter_(2, self.columns.unsqueeze(-1), True)
        for n, (feed, safety) in enumerate(zip(self.feeds, self.safety, strict=True)):
            self._open_slot(allowed[n], text[n], feed, gate)
            for index, row in enumerate(safety):
                for span in row.attends:
                    allowed[n, self.n_text + index, SLOT_COLUMNS + span.start : SLOT_COLUMNS + span.end] = True
        return allowed

    def _open_slot(self, allowed: torch.Tensor, text: torch.Tensor, feed: Feed, gate: bool) -> None:
        row, new = feed.row, feed.sees_new and any(probe.writes for probe in feed.probes)
        if not gate or not feed.tokens or not (row.has_slot or new):
            return
        column = 1 - row.slot if new else row.slot
        first = self.n_text - len(feed.tokens) + max(0, row.prompt.rendered.query_end - row.length)
        allowed[first : self.n_text, column] = True


def _portions(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices by falling length, in portions of at most PREFILL_TOKENS padded tokens; all at once if they
    fit.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    if len(order) * lengths[order[0]] <= PREFILL_TOKENS:
        yield list(range(len(lengths)))
        return
    start = 0
    while start < len(order):
        size = max(1, PREFILL_TOKENS // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size
