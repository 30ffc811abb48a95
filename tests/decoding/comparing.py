"""Decodes with the batched engine and with the reference, and compares every verdict and the text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from scripted import ScriptedRules
from worlds import World

from safealign.decoding import CalibratedThresholds, DecodedRow, DecodingOptions
from safealign.decoding.reference import ReferenceAnswer

OFF = CalibratedThresholds()


def compare(row: DecodedRow, wanted: ReferenceAnswer) -> None:
    """Greedy text, course of events and every verdict are the same."""
    assert row.tokens == wanted.tokens
    assert (row.intervened_at, row.finish) == (wanted.intervened_at, wanted.finish)
    assert [(e.position, e.kind) for e in row.trace] == [(step, str(p.kind)) for step, p, _ in wanted.verdicts]
    assert [e.logit for e in row.trace] == pytest.approx([logit for _, _, logit in wanted.verdicts], abs=2e-4)


def check(
    world: World, options: DecodingOptions, seed: int, eos: Sequence[int] = (), **rates: float
) -> list[DecodedRow]:
    """Decodes all prompts in one batch under a script and compares each with the reference."""
    prompts = world.prompts()
    decoder = world.decoder(options, OFF, eos)
    rules = ScriptedRules.like(decoder.rules, seed, **rates)
    decoder.rules = rules
    rows = decoder.decode(prompts, [0] * len(prompts))
    for prompt, row in zip(prompts, rows, strict=True):
        compare(row, world.reference(prompt, options, OFF, eos, rules=rules))
    return rows
