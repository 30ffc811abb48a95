"""The cached engine: one batched forward that feeds text rows and evaluates safety rows, each row in its own
state.

This is the seam of the decoder: `open` a batch, `admit` rows, `forward` feeds, `withdraw`, `close`. What the
rows are for is the rules' business; who sees whom equals `layout.masks.build`, which the reference decoder
uses and tests compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from safealign.decoding.attention import grouped, packs
from safealign.decoding.observing import Observer
from safealign.decoding.planning import Feed, Plan
from safealign.decoding.pooling import BatchMemory, sum_over
from safealign.decoding.prefilling import chunks, portions
from safealign.decoding.rows import EngineRow, Prompt, RowSettings
from safealign.decoding.slot import SLOT_COLUMNS, SlotCache
from safealign.layout import SafetyRow
from safealign.layout.masks import additive
from safealign.modeling.architectures import layer_masks
from safealign.modeling.attach import Capture, RowPlan, SafetyParts
from safealign.modeling.taps import Blocks, tapped


@dataclass(frozen=True)
class Fed:
    """`logits` `[N, V]` after each feed's last token (None when no text was fed); `verdicts` per feed and
    probe; `stirs`: the token head's logit of each feed's last token (None without such a head or such a token).
    """

    logits: torch.Tensor | None
    verdicts: list[tuple[float, ...]]
    stirs: list[float] | None = None


class CachedEngine:
    """Feeds a causal LM through a slot cache. `parts` None is for a bare model, without any safety row; `observer` is
    shown the states of all text that is fed.
    """

    def __init__(
        self,
        lm: nn.Module,
        parts: SafetyParts | None,
        settings: RowSettings | None = None,
        *,
        gate: bool = True,
        observer: Observer | None = None,
    ) -> None:
        self.lm, self.parts, self.gate, self.observer = lm, parts, gate, observer
        self.settings = settings or RowSettings()
        embedding: torch.Tensor = lm.get_input_embeddings().weight  # type: ignore[operator]
        self.device, self.dtype = embedding.device, embedding.dtype
        self.rows: list[EngineRow] = []
        self._masks = layer_masks(lm) if parts is None else parts.masks
        self._cache = SlotCache(0)
        self._memory = BatchMemory(0)
        self._listening = False
        self._chunk: int | None = None

    def open(
        self,
        n_rows: int,
        longest: int,
        room: int,
        *,
        reach: int = 0,
        listen: bool = False,
        static: bool = False,
        chunk: int | None = None,
    ) -> None:
        """Starts a new batch of at most `n_rows`; the one before is over, even if it had rows left.

        `reach`: how many of a row's newest tokens may be read again; `listen`: whether the token head is read.
        `static`: keys and values are allocated for prompts up to `longest` tokens and `room` generated ones each, or
        taken over from the batch before where they suffice; otherwise they grow with the text. `chunk`: prompt tokens
        of a row in one forward; None for all.
        """
        self.rows = []
        capacity = SLOT_COLUMNS + longest + room if static else 0
        if not (static and self._cache.restart(n_rows, capacity)):
            self._cache = SlotCache(n_rows, capacity)
        self._memory = BatchMemory(n_rows, reach)
        self._chunk = chunk
        self._listening = listen and self.parts is not None and self.parts.token_head is not None

    def admit(self, prompts: Sequence[Prompt]) -> list[EngineRow]:
        """Gives each prompt a free row, to be fed next. Raises ValueError when there are too few."""
        first = self._cache.admit(len(prompts))
        admitted = [EngineRow(prompt, first + at) for at, prompt in enumerate(prompts)]
        self.rows += admitted
        return admitted

    def prefill(self, feeds: Sequence[Feed], *, apart: bool = False) -> Fed:
        """`forward` in portions of similar length and in chunks, so that a large ragged batch or a long prompt does
        not fill the memory. A `Prompt` that several of the feeds are of is fed once, and what it left is copied.

        `apart`: probes get a forward of their own behind the text's, which is then computed as a bare model computes
        it. Raises ValueError with the gate open, where the text's own rows see what a probe writes.
        """
        if apart and self.gate:
            raise ValueError("with the gate open a prompt's last rows see its verdict: feed both in one forward")
        first: dict[int, int] = {}
        source = [first.setdefault(id(feed.row.prompt), index) for index, feed in enumerate(feeds)]
        fed = self._prefill([feeds[index] for index in first.values()], apart)
        if len(first) == len(feeds):
            return fed
        place = {index: at for at, index in enumerate(first.values())}
        for prompt in first.values():
            copies = [feeds[i].row for i, index in enumerate(source) if index == prompt and i != index]
            self._copy(feeds[prompt].row, copies)
        at = [place[index] for index in source]
        return Fed(None if fed.logits is None else fed.logits[at], [fed.verdicts[i] for i in at])

    def _prefill(self, feeds: Sequence[Feed], apart: bool) -> Fed:
        logits: dict[int, torch.Tensor] = {}
        verdicts: dict[int, tuple[float, ...]] = {}
        for chosen in portions([len(feed.tokens) for feed in feeds]):
            fed = (self._text_first if apart else self._in_chunks)([feeds[i] for i in chosen])
            for index in chosen:
                feeds[index].row.whole = None
            for at, index in enumerate(chosen):
                verdicts[index] = fed.verdicts[at]
                if fed.logits is not None:
                    logits[index] = fed.logits[at]
        order = range(len(feeds))
        stacked = torch.stack([logits[i] for i in order]) if logits else None
        return Fed(stacked, [verdicts[i] for i in order])  # a prompt is not listened to: its own windows watch it

    def _copy(self, row: EngineRow, others: Sequence[EngineRow]) -> None:
        """Gives rows of the same prompt all that `row` holds."""
        self._cache.copy(row.index, [other.index for other in others], SLOT_COLUMNS + row.length)
        for other in others:
            other.length, other.slot, other.has_slot, other.opened = row.length, row.slot, row.has_slot, row.opened
            if self._pools:
                self._memory.move(row.index, other.index)
        if self.observer is not None:
            self.observer.copied(row, others)

    def _in_chunks(self, feeds: Sequence[Feed]) -> Fed:
        pieces = [chunks(feed, self._chunk or len(feed.tokens)) for feed in feeds]
        for step in range(max(len(row) for row in pieces) - 1):
            self.forward([row[step] for row in pieces if step < len(row) - 1])
        return self.forward([row[-1] for row in pieces])

    def _text_first(self, feeds: Sequence[Feed]) -> Fed:
        fed = self._in_chunks([Feed(feed.row, feed.tokens) for feed in feeds])
        probing = [feed for feed in feeds if feed.probes]
        found = self.forward([Feed(feed.row, (), feed.probes) for feed in probing]).verdicts if probing else []
        verdicts = dict(zip((feed.row for feed in probing), found, strict=True))
        return Fed(fed.logits, [verdicts.get(feed.row, ()) for feed in feeds])

    @torch.no_grad()
    def forward(self, feeds: Sequence[Feed]) -> Fed:
        """One forward of these rows; the others stay as they are.

        Raises RuntimeError for rows of a batch that is over.
        """
        if not all(self._holds(feed.row) for feed in feeds):
            raise RuntimeError("a new batch was opened on this engine: give each run that is under way one of its own")
        # In the cache's own order, so that a forward of all rows reads the buffers in place instead of copying them.
        order = sorted(range(len(feeds)), key=lambda i: feeds[i].row.index)
        fed = self._forward([feeds[i] for i in order])
        place = sorted(range(len(order)), key=lambda i: order[i])
        if place == list(range(len(place))):
            return fed
        logits = None if fed.logits is None else fed.logits[place]
        return Fed(logits, [fed.verdicts[i] for i in place], fed.stirs and [fed.stirs[i] for i in place])

    def _forward(self, feeds: Sequence[Feed]) -> Fed:
        plan = Plan(feeds, self.settings, self.gate, self.device, packs=packs(self.lm))
        self._cache.aim([feed.row.index for feed in feeds], plan.places, plan.width, fresh=plan.fresh)
        watched = self.observer.depths if self.observer is not None else ()
        with grouped(self.lm, plan.packing), tapped(self.lm, watched) as blocks:
            logits, capture = self._run(plan)
        self._show(plan, blocks)
        for feed in feeds:
            feed.row.length += len(feed.tokens)
        nothing: list[tuple[float, ...]] = [() for _ in feeds]
        verdicts, stirs = nothing, None
        if capture is not None:
            verdicts, stirs = self._judge(plan, plan.grid(capture.states)), self._stirs(plan, capture)
        for feed in feeds:
            if any(probe.writes for probe in feed.probes):
                feed.row.slot, feed.row.has_slot = 1 - feed.row.slot, True
        return Fed(logits, verdicts, stirs)

    def withdraw(self, row: EngineRow, length: int) -> None:
        """Rolls the row back to its first `length` text rows."""
        row.length = length
        if self.observer is not None:
            self.observer.withdrawn(row, length)
        if self._pools:
            self._memory.cut(row.index, length)

    def close(self, row: EngineRow) -> None:
        """Takes a finished row out of the batch; the last one takes its place. Nothing happens to one that is out."""
        if not self._holds(row):
            return
        self._cache.drop(row.index)
        last = self.rows.pop()
        if last is not row:
            self._memory.move(last.index, row.index)
            self.rows[row.index] = last
            last.index = row.index

    def _holds(self, row: EngineRow) -> bool:
        return row.index < len(self.rows) and self.rows[row.index] is row

    @property
    def _pools(self) -> bool:
        """Whether the head reads more than the safety row's own state."""
        return self.parts is not None and bool({"mean", "last"} & set(self.parts.settings.pool))

    def _run(self, plan: Plan) -> tuple[torch.Tensor | None, Capture | None]:
        """Logits `[N, V]` of the last text rows, and what the heads read."""
        call: dict[str, Any] = {
            "input_ids": plan.input_ids,
            "past_key_values": self._cache,
            "use_cache": True,
        }
        mask = additive(plan.allowed, self.dtype).unsqueeze(1)
        if self.parts is None:
            masks = self._masks.argument(mask, plan.text_rows, plan.text_columns)
            return self._text(plan, attention_mask=masks, position_ids=plan.positions, **call), None
        rows = RowPlan(
            plan.n_probes,
            mask,
            plan.positions,
            last_only=plan.n_text > 0 and plan.packing is None,
            text_rows=plan.text_rows,
            text_columns=plan.text_columns,
        )
        with self.parts.armed(rows) as capture:
            logits = self._text(plan, **call) if plan.n_text else None
            if not plan.n_text:
                self.parts.decoder(**call)
        return logits, capture

    def _show(self, plan: Plan, blocks: Blocks) -> None:
        """Shows the observer the states of the text rows just fed."""
        if self.observer is None or not plan.n_text:
            return
        states = plan.grid(torch.stack([blocks[depth] for depth in self.observer.depths], dim=2))
        for at, feed in enumerate(plan.feeds):
            if feed.tokens:
                start = plan.n_text - len(feed.tokens)
                self.observer.fed(feed.row, feed.tokens, states[at, start : plan.n_text])

    def _text(self, plan: Plan, **call: Any) -> torch.Tensor:
        if plan.packing is None:
            logits: torch.Tensor = self.lm(**call, logits_to_keep=1).logits[:, -1]
        else:
            logits = self.lm(**call, logits_to_keep=plan.last_text).logits[0]
        return logits.float()

    def _judge(self, plan: Plan, states: torch.Tensor) -> list[tuple[float, ...]]:
        """Remembers the text rows' states `[N, T+S, depths, H]` and scores the safety rows."""
        assert self.parts is not None
        if self._pools:
            self._remember(plan, states)
        opened = {at: feed.row.whole for at, feed in enumerate(plan.feeds) if feed.row.whole is not None}
        asked = [(at, index, row) for at, rows in enumerate(plan.safety) for index, row in enumerate(rows)]
        if not asked:
            return [() for _ in plan.feeds]
        at, index, safety = (list(column) for column in zip(*asked, strict=True))
        rows = states[at, [plan.n_text + i for i in index]]
        means, lasts = self._pooled(plan, opened, at, safety) if self._pools else (None, None)
        kinds = torch.tensor([int(row.kind) for row in safety], device=states.device)
        flat = iter(self.parts.score(kinds, rows, means, lasts).tolist())
        return [tuple(next(flat) for _ in rows) for rows in plan.safety]

    def _remember(self, plan: Plan, states: torch.Tensor) -> None:
        """Takes in the text rows' states; a prompt that ends here is kept whole until its next forward with text."""
        going_on = []
        for at, feed in enumerate(plan.feeds):
            if not feed.tokens:
                continue
            feed.row.whole = None
            if feed.row.opened:
                going_on.append((at, feed))
                continue
            feed.row.states.append(states[at, plan.n_text - len(feed.tokens) : plan.n_text])
            if feed.row.length == feed.row.prompt.n_text:
                pieces = feed.row.states
                feed.row.whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
                feed.row.states, feed.row.opened = [], True
                self._memory.open(feed.row.index, feed.row.prompt, feed.row.whole)
        for step in range(max((len(feed.tokens) for _, feed in going_on), default=0)):
            now = [(at, feed) for at, feed in going_on if step < len(feed.tokens)]
            places = [plan.n_text - len(feed.tokens) + step for _, feed in now]
            self._memory.append([feed.row.index for _, feed in now], states[[at for at, _ in now], places])

    def _pooled(
        self, plan: Plan, whole: Mapping[int, torch.Tensor], at: Sequence[int], safety: Sequence[SafetyRow]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Span means and last states `[n, depths, H]`: of a prompt that ends here from its own, else from memory."""
        if not whole:
            rows = [plan.feeds[i].row.index for i in at]
            return self._memory.means(rows, safety), self._memory.lasts(rows, safety)
        means, lasts = [], []
        for i, row in zip(at, safety, strict=True):
            feed = plan.feeds[i]
            if i not in whole:
                means.append(self._memory.means([feed.row.index], [row])[0])
                lasts.append(self._memory.lasts([feed.row.index], [row])[0])
                continue
            means.append(sum_over(whole[i], row.pools) / max(1, sum(span.length for span in row.pools)))
            lasts.append(whole[i][row.last if row.pools else feed.row.prompt.last_query])
        return torch.stack(means), torch.stack(lasts)

    def _stirs(self, plan: Plan, capture: Capture) -> list[float] | None:
        """The token head's logit at each feed's last token."""
        if not (self._listening and plan.n_text):
            return None
        assert self.parts is not None
        head = self.parts.token_head
        assert head is not None
        states = capture.at(self.parts.token_depths)
        last = states[:, plan.n_text - 1] if plan.packing is None else states[0, plan.last_text]
        found: list[float] = head(last.flatten(-2)).tolist()
        return found
