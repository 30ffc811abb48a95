"""Replays fixed answers: every verdict that the rules would ask for, in one forward per answer.

Used to measure the windows on texts that the model did not write just now (harmful continuations, refusals).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace

import torch

from safealign.decoding.rows import Prompt, RowSettings, safety_row
from safealign.decoding.rules import Probe, RowState, Rules
from safealign.decoding.trace import Evaluation, Recording
from safealign.layout import Layout, build_layout
from safealign.modeling.attach import SafetyParts
from safealign.modeling.features import layout_logits, token_features


@dataclass(frozen=True)
class FixedAnswer:
    """A rendered prompt and the token ids of the answer that follows it."""

    prompt: Prompt
    tokens: tuple[int, ...]


def replay(
    parts: SafetyParts,
    answers: Sequence[FixedAnswer],
    rules: Rules,
    settings: RowSettings,
    *,
    gate: bool = True,
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
) -> list[Recording]:
    """Recordings of fixed answers, as if they were decoded with interventions off under `rules`' schedule.

    Where that listens to the token head, each answer is read once more for it, all of it seeing the request's verdict.
    """
    recording = replace(rules, record=True)
    listens = rules.schedule.listens
    woken = _woken(parts, answers, recording, settings, gate, batch_size) if listens else [set() for _ in answers]
    asked = [_probes(answer, recording, wakes) for answer, wakes in zip(answers, woken, strict=True)]
    layouts = [_layout(answer, probes, settings, gate) for answer, probes in zip(answers, asked, strict=True)]
    ids = [(*answer.prompt.rendered.input_ids, *answer.tokens) for answer in answers]
    found = layout_logits(parts, ids, layouts, batch_size, progress)
    return [
        _recording(answer, probes, logits.tolist())
        for answer, probes, logits in zip(answers, asked, found, strict=True)
    ]


def intervention_step(recording: Recording, theta_window: float | None, tau: int) -> int | None:
    """The step at which an answer would have been stopped, or None: the first S whose windows all reach θ, +
    τ - 1.

    A scheduled step inside PENDING raises no alarm of its own, so this can be up to τ - 1 steps early.
    """
    if theta_window is None:
        return None
    for step in sorted(recording.windows):
        if min(recording.windows[step]) >= theta_window:
            return min(step + tau - 1, recording.length)
    return None


def _woken(
    parts: SafetyParts,
    answers: Sequence[FixedAnswer],
    rules: Rules,
    settings: RowSettings,
    gate: bool,
    batch_size: int,
) -> list[set[int]]:
    """Per answer, the steps at which the token head asks for a window."""
    head = parts.token_head
    if head is None:
        return [set() for _ in answers]
    request = [(0, rules.opening()[0])]
    layouts = [_layout(answer, request, settings, gate) for answer in answers]
    ids = [(*answer.prompt.rendered.input_ids, *answer.tokens) for answer in answers]
    rows = [range(answer.prompt.n_text, answer.prompt.n_text + len(answer.tokens)) for answer in answers]
    found = token_features(parts, ids, layouts, rows, batch_size)
    with torch.no_grad():
        stirs = [head(features.to(head.mean.device)).tolist() for features in found]
    return [{t + 2 for t, x in enumerate(logits) if rules.wakes(RowState(), t + 1, x)} for logits in stirs]


def _probes(answer: FixedAnswer, rules: Rules, woken: Container[int]) -> list[tuple[int, Probe]]:
    prefix, length = answer.prompt.prefix, len(answer.tokens)
    found = [(0, probe) for probe in rules.opening(prefix)]
    for step in range(1, length + 1):
        asked = rules.probes(RowState(), step, prefix=prefix, final=step == length, woken=woken)
        found += [(step, probe) for probe in asked]
    return found


def _layout(answer: FixedAnswer, probes: Sequence[tuple[int, Probe]], settings: RowSettings, gate: bool) -> Layout:
    prompt = answer.prompt
    whole = replace(prompt.rendered, input_ids=(*prompt.rendered.input_ids, *answer.tokens))
    rows = [safety_row(probe, prompt, settings) for _, probe in probes]
    versions = [index for index, (_, probe) in enumerate(probes) if probe.writes]
    from_row = [prompt.rendered.query_end if index == 0 else prompt.n_text + probes[index][0] for index in versions]
    return build_layout(whole, rows, gate=gate, versions=versions, from_row=from_row)


def _recording(answer: FixedAnswer, probes: Sequence[tuple[int, Probe]], logits: Sequence[float]) -> Recording:
    trace = [
        Evaluation.of(probe, step, logit, 0.0, "recorded", 0)
        for (step, probe), logit in zip(probes, logits, strict=True)
    ]
    return Recording.of(trace, len(answer.tokens))
