"""bf16: the engine's logits and verdicts agree with the full recompute's within the format's own error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from worlds import make_world

from safealign.decoding import CachedEngine, CalibratedThresholds, Feed, Probe, ProbeKind
from safealign.layout import build_layout, request_row, window_row
from safealign.layout.collate import collate_layouts
from safealign.modeling.features import batch_logits, plan_for

OFF = CalibratedThresholds()
# Of the largest logit: bf16 carries eight bits, and two orders of summation differ in the last two.
TOLERANCE = 0.03


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_bf16_logits_agree_within_the_tolerance(architecture: str) -> None:
    world = make_world(1, architecture)
    world.lm.to(torch.bfloat16)
    world.parts.token.float()
    world.parts.head.float()
    prompts = world.prompts()
    answers = [list(range(20, 32)) for _ in prompts]
    logits, verdicts = _cached(world, prompts, answers)
    for i, prompt in enumerate(prompts):
        wanted, verdict = _whole(world, prompt, answers[i])
        assert (logits[i] - wanted).abs().max() <= TOLERANCE * wanted.abs().max()
        assert verdicts[i] == pytest.approx(verdict, abs=TOLERANCE * max(1.0, abs(verdict)) * 4)


def _cached(world: Any, prompts: Any, answers: Any) -> tuple[torch.Tensor, list[float]]:
    engine = CachedEngine(world.lm, world.parts, world.settings)
    engine.open(len(prompts), 16, 16)
    rows = engine.admit(prompts)
    opening = (Probe(ProbeKind.REQUEST, writes=True),)
    engine.prefill([Feed(row, p.rendered.input_ids, opening, True) for row, p in zip(rows, prompts, strict=True)])
    for step in range(12):
        probe = (Probe(ProbeKind.WINDOW, 3, 12),) if step == 11 else ()
        fed = engine.forward([Feed(row, [a[step]], probe) for row, a in zip(rows, answers, strict=True)])
    assert fed.logits is not None
    return fed.logits, [verdict[0] for verdict in fed.verdicts]


@torch.no_grad()
def _whole(world: Any, prompt: Any, answer: list[int]) -> tuple[torch.Tensor, float]:
    from dataclasses import replace

    whole = replace(prompt.rendered, input_ids=(*prompt.rendered.input_ids, *answer))
    span = prompt.span(3, 12)
    layout = build_layout(whole, [request_row(whole), window_row(whole, span.start, span.end)])
    batch = collate_layouts([layout])
    with world.parts.armed(plan_for(batch)) as capture:
        out = world.lm(input_ids=torch.tensor([whole.input_ids]), use_cache=False)
    return out.logits[0, -1].float(), float(batch_logits(world.parts, capture, batch)[0, 1])
