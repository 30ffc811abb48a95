"""From records to training examples: token ids, language-model labels and a layout with labelled safety rows.

Draws (windows, gate, slot versions, recovery prefixes) are made once per example from the seed, so that a run can
be repeated and resumed step by step.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from safealign.data.records import BENIGN, Record
from safealign.data.refusals import refusal_reason
from safealign.data.rendering import Renderer
from safealign.errors import DataError
from safealign.layout import (
    Layout,
    Rendered,
    RowKind,
    SafetyRow,
    Span,
    build_layout,
    refresh_row,
    request_row,
    window_row,
)

IGNORED = -100


@dataclass(frozen=True)
class ExampleSettings:
    """How examples are drawn; lengths in tokens, shares in [0, 1].

    `window_length` is r2, `refresh_length` r1. `gate_closed_share`: examples whose text rows see no slot.
    `follow_windows`: examples whose windows and refresh rows write the slot as they do at inference.
    `recovery_share`: harmful answers that are also cut after k tokens and followed by trigger and refusal.
    """

    trigger: str
    placement: str = "append"
    window_length: int = 10
    refresh_length: int = 10
    windows_per_answer: int = 4
    window_sees_query: bool = False
    gate_closed_share: float = 0.25
    follow_windows: float = 0.25
    recovery_share: float = 0.5
    recovery_max_prefix: int = 40
    name_category: bool = True
    max_length: int = 512


class Slot(NamedTuple):
    """Who sees the slot in one example: `gate` closed means no text row; `follow` means that later rows write it."""

    gate: bool
    follow: bool


@dataclass(frozen=True)
class Example:
    """One training sequence: `labels` are -100 wherever the language model is not trained.

    `sampled`: the undefended model wrote some of it, and it is shown nowhere.
    """

    id: str
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    layout: Layout
    category: str
    token_labels: tuple[int, ...] = ()
    sampled: bool = False

    @property
    def n_tokens(self) -> int:
        """Text and safety rows that a forward computes."""
        return len(self.input_ids) + len(self.layout.safety)


@dataclass(frozen=True)
class _Answer:
    """A response in tokens: `harmful[j]` of its j-th token, `trained[j]` whether the LM learns it.

    `judged` is False where nobody said whether the answer is harmful, and its request is not benign either: its
    windows carry no label.
    """

    rendered: Rendered
    harmful: tuple[bool, ...]
    trained: tuple[bool, ...]
    malicious_request: bool | None
    judged: bool = True


def build_examples(
    records: Sequence[Record], renderer: Renderer, settings: ExampleSettings, seed: int
) -> list[Example]:
    """Renders every record and draws its safety rows; records that exceed `max_length` lose response tokens only.

    A record without an answer trains the request's verdict alone. A harmful answer is never a target of the
    language model; its windows are labelled, and a share of them becomes a recovery example besides.
    """
    return list(each_example(records, renderer, settings, seed))


def each_example(
    records: Sequence[Record], renderer: Renderer, settings: ExampleSettings, seed: int
) -> Iterator[Example]:
    """The examples of `build_examples`, one by one."""
    for index, record in enumerate(records):
        yield from _examples_of(record, renderer, settings, random.Random(f"{seed}/{index}/{record.id}"))


def draw_slot(settings: ExampleSettings, rng: random.Random) -> Slot:
    """One draw of who sees the slot, independent of every label."""
    return Slot(rng.random() >= settings.gate_closed_share, rng.random() < settings.follow_windows)


def build_side(
    record: Record,
    renderer: Renderer,
    settings: ExampleSettings,
    rng: random.Random,
    slot: Slot,
    judge_request: bool,
) -> Example:
    """One side of a preference pair: as an example of its own, but with the pair's draw of the slot.

    `judge_request` False leaves row 0 without a label, since the pair's request counts once.
    """
    answer = _answer(record, _rendered(record, renderer, settings))
    return _example(record, answer, settings, rng, slot, judge_request)


def _rendered(record: Record, renderer: Renderer, settings: ExampleSettings) -> Rendered:
    try:
        return _cut(renderer.render(record.messages, close=record.complete), settings.max_length)
    except DataError as error:
        raise DataError(f"{record.where or record.id}: {error}") from error


def _examples_of(
    record: Record, renderer: Renderer, settings: ExampleSettings, rng: random.Random
) -> Iterator[Example]:
    rendered = _rendered(record, renderer, settings)
    answer = _answer(record, rendered)
    yield _example(record, answer, settings, rng, draw_slot(settings, rng))
    if any(answer.harmful) and rng.random() < settings.recovery_share:
        yield from _recovery(record, rendered, answer, renderer, settings, rng)


def _cut(rendered: Rendered, max_length: int) -> Rendered:
    """Cuts the response at `max_length` rows; a prompt that is longer on its own stays whole."""
    end = max(rendered.response.start, min(rendered.response.end, max_length))
    response = Span(rendered.response.start, end)
    return Rendered(
        rendered.input_ids[:end], rendered.query_end, rendered.content, response, rendered.offsets[: response.length]
    )


def _answer(record: Record, rendered: Rendered) -> _Answer:
    malicious = [(span.start, span.end) for span in record.spans if span.label == "malicious"]
    whole = record.response_label == "malicious" and not malicious
    harmful = tuple(
        whole or any(start < max(b, a + 1) and a < end for start, end in malicious) for a, b in rendered.offsets
    )
    request = None if record.label is None else record.label == "malicious"
    judged = record.response_label is not None or bool(record.spans) or record.label == BENIGN
    # What follows a harmful passage continues it, what leads to one invites it, and an answer to a malicious request
    # that nobody judged may well be one: none of it is a target.
    learnt = record.learn and not any(harmful) and (judged or not request)
    return _Answer(rendered, harmful, (learnt,) * len(harmful), request, judged)


def _labels(answer: _Answer) -> tuple[int, ...]:
    start = answer.rendered.response.start
    ids = answer.rendered.input_ids
    targets = [ids[start + j] if learn else IGNORED for j, learn in enumerate(answer.trained)]
    return (*([IGNORED] * start), *targets)


def _token_labels(answer: _Answer) -> tuple[int, ...]:
    """Per text row: whether the response token is part of something harmful; IGNORED elsewhere, or where unjudged."""
    n = _content_length(answer) if answer.judged else 0
    start, rows = answer.rendered.response.start, len(answer.rendered.input_ids)
    return (*([IGNORED] * start), *map(int, answer.harmful[:n]), *([IGNORED] * (rows - start - n)))


def _request_label(answer: _Answer) -> float | None:
    return None if answer.malicious_request is None else float(answer.malicious_request)


def _example(
    record: Record,
    answer: _Answer,
    settings: ExampleSettings,
    rng: random.Random,
    slot: Slot,
    judge_request: bool = True,
) -> Example:
    label = _request_label(answer) if judge_request else None
    rows = [request_row(answer.rendered, settings.placement, label)]
    rows += _windows(answer, settings, rng)
    rows += _refreshes(answer, settings, rng)
    versions = _written(rows, answer) if slot.follow else [0]
    layout = build_layout(answer.rendered, rows, gate=slot.gate, versions=versions)
    category = record.category or "none"
    return Example(
        str(record.id),
        answer.rendered.input_ids,
        _labels(answer),
        layout,
        category,
        _token_labels(answer),
        record.sampled,
    )


def _written(rows: Sequence[SafetyRow], answer: _Answer) -> list[int]:
    """The rows that would write the slot at inference, in time: refresh rows if refusing, else windows."""
    kind = RowKind.REFRESH if answer.malicious_request else RowKind.WINDOW
    later = sorted((i for i, row in enumerate(rows) if row.kind == kind), key=lambda i: rows[i].ready)
    return [0, *later]


def _windows(answer: _Answer, settings: ExampleSettings, rng: random.Random) -> list[SafetyRow]:
    n, start = _content_length(answer), answer.rendered.response.start
    ends = _window_ends(n, answer.harmful, settings, rng)
    rows = []
    for end in ends:
        begin = max(0, end - settings.window_length)
        label = float(2 * sum(answer.harmful[begin:end]) >= end - begin) if answer.judged else None
        rows.append(
            window_row(
                answer.rendered, start + begin, start + end, settings.placement, settings.window_sees_query, label
            )
        )
    return rows


def _content_length(answer: _Answer) -> int:
    """Response tokens that carry text: the end-of-turn token closes no window."""
    offsets = answer.rendered.offsets
    return sum(1 for a, b in offsets if b > a) if offsets else answer.rendered.response.length


def _window_ends(n: int, harmful: Sequence[bool], settings: ExampleSettings, rng: random.Random) -> list[int]:
    """Ends t of the drawn windows: spread over the answer, and two about a transition where there is one."""
    if n == 0 or settings.windows_per_answer == 0:
        return []
    ends = set(rng.sample(range(1, n + 1), min(n, settings.windows_per_answer)))
    if True in harmful[:n] and not harmful[0]:
        first = list(harmful).index(True)
        ends |= {min(n, first + rng.randint(settings.window_length // 2, settings.window_length)), max(1, first)}
    return sorted(ends)


def _refreshes(answer: _Answer, settings: ExampleSettings, rng: random.Random) -> list[SafetyRow]:
    """One refresh row at a random k ≤ r1: 1 if the request is malicious or the tokens before k are harmful."""
    n = _content_length(answer)
    if n == 0 or answer.malicious_request is None:
        return []
    k = rng.randint(1, min(n, settings.refresh_length))
    bad = answer.malicious_request or any(answer.harmful[:k])
    label = float(bad) if bad or answer.judged else None
    return [refresh_row(answer.rendered, k, settings.placement, label)]


def _recovery(
    record: Record,
    rendered: Rendered,
    answer: _Answer,
    renderer: Renderer,
    settings: ExampleSettings,
    rng: random.Random,
) -> Iterator[Example]:
    """Harmful prefix (never a target) → trigger and refusal (trained), as after an intervention at k.

    Nothing comes where a prefix of three harmful tokens and the refusal do not fit into `max_length`.
    """
    trigger = renderer.trigger_ids(settings.trigger, mid_answer=True)
    reason = renderer.content_ids(" " + refusal_reason(record, rng, settings.name_category))
    tail = (*trigger, *reason, *renderer.end_ids)
    start, first = rendered.response.start, answer.harmful.index(True)
    n = min(_content_length(answer), settings.max_length - start - len(tail))
    if n <= first:
        return
    k = rng.randint(min(first + 3, n), min(n, first + settings.recovery_max_prefix))
    ids = (*rendered.input_ids[: start + k], *tail)
    joined = Rendered(ids, rendered.query_end, rendered.content, Span(start, len(ids)))
    recovered = _Answer(
        joined,
        (*answer.harmful[:k], *([False] * len(tail))),
        (*([False] * k), *([True] * len(tail))),
        answer.malicious_request,
    )
    yield _recovery_example(record, recovered, k, settings, rng)


def _recovery_example(
    record: Record, answer: _Answer, k: int, settings: ExampleSettings, rng: random.Random
) -> Example:
    rendered = answer.rendered
    gate = rng.random() >= settings.gate_closed_share
    rows = [
        request_row(rendered, settings.placement, _request_label(answer)),
        refresh_row(rendered, k, settings.placement, 1.0),
        *_windows(answer, settings, rng),
    ]
    seen_from = (rendered.query_end, rendered.response.start + k - 1)
    layout = build_layout(rendered, rows, gate=gate, versions=(0, 1), from_row=seen_from)
    category = record.category or "none"
    return Example(
        f"{record.id}#recovery",
        rendered.input_ids,
        _labels(answer),
        layout,
        category,
        _token_labels(answer),
        record.sampled,
    )
