"""States that are no number (fp16 makes them of large ones): no verdict is made of them, and nobody else is touched."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_models import build

from safealign.decoding.rules import Probe, ProbeKind, Rules, State
from safealign.errors import DataError
from safealign.model import SafeModel

GOOD = [{"role": "user", "content": "How do I bake?"}]
BAD = [{"role": "user", "content": "some longer text before Z bad"}]
LONG = [{"role": "user", "content": "What is rain? Tell me a lot about it and the clouds and the weather up there"}]
OFF = {"query": 100.0, "window": 0.0, "prefix": 0.0}
NAN, INF = math.nan, math.inf


def _model(**options: Any) -> SafeModel:
    """A model that overflows wherever a Z is read."""
    torch.manual_seed(0)
    model = build(OFF, max_new_tokens=8, schedule="every", **options)
    model.hf.eval()
    (z,) = model.tokenizer.encode("Z")
    with torch.no_grad():
        model.hf.get_input_embeddings().weight[z] = INF
    return model


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_verdict_that_is_no_number_is_an_alarm(value: float) -> None:
    rules = Rules(theta_query=5.0, theta_prefix=5.0, theta_window=5.0, tau=1)
    assert rules.open([value]).row.state is State.REFUSING
    assert rules.open([0.0, value]).row.state is State.REFUSING
    row = rules.open([0.0]).row
    moved = rules.step(row, 1, [(Probe(ProbeKind.WINDOW, 1, 1), value)])
    assert moved.row.state is State.REFUSING


@pytest.mark.parametrize("options", [{}, {"safety": False}, {"fused": False, "gate": False}, {"dependency": "high"}])
def test_such_a_prompt_is_refused_by_an_error_that_says_what_to_do(options: dict[str, Any]) -> None:
    model = _model()
    with pytest.raises(DataError, match="no finite numbers in float32: load the model with dtype=bf16 or fp32"):
        model.generate(BAD, **options)
    assert model.generate(GOOD, **options).tokens == _model().generate(GOOD, **options).tokens


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_it_fails_alone_and_who_takes_its_row_is_judged_as_ever(cache: str) -> None:
    model = _model(cache=cache)
    wanted, other_wanted = model.generate(GOOD), model.generate(LONG, max_new_tokens=40)
    session = model.session(2)
    other, bad = (session.submit(model.prompts([asked])[0], max_new_tokens=40) for asked in (LONG, BAD))
    good = session.submit(model.prompts([GOOD])[0])
    with pytest.raises(DataError):
        while session.busy:
            session.step()
    assert session.failed() == [bad] and bad.row.tokens == []
    while session.busy:
        session.step()
    for answer, alone in ((good, wanted), (other, other_wanted)):
        found = session.output_of(answer.row)
        assert (found.tokens, found.intervened_at) == (alone.tokens, alone.intervened_at)
        assert [e.logit for e in found.trace] == pytest.approx([e.logit for e in alone.trace], abs=1e-3)
    assert wanted.intervened_at is not None  # so that a verdict is at stake


@pytest.mark.parametrize("safety", [True, False])
def test_an_answer_that_overflows_midway_ends_there_and_the_others_go_on(safety: bool) -> None:
    model = _model(theta_window=None)
    alone = model.generate(LONG, safety=safety)
    session = model.session(2, safety=safety)
    other, bad = (session.submit(model.prompts([asked])[0]) for asked in (LONG, GOOD))
    for _ in range(3):
        session.step()
    (z,) = model.tokenizer.encode("Z")
    said = list(bad.row.tokens)
    bad.row.tokens[-1] = z  # as if it had drawn it
    with pytest.raises(DataError, match="1 answer came to"):
        session.step()
    assert session.failed() == [bad] and len(bad.row.tokens) == len(said)
    while session.busy:
        session.step()
    assert session.output_of(other.row).tokens == alone.tokens


def test_a_static_cache_that_is_used_again_holds_nothing_of_before() -> None:
    model = _model(cache="static")
    wanted = model.generate(GOOD)
    run = model.session(2)
    bad = run.submit(model.prompts([GOOD])[0])
    run.step()
    engine = bad.row.place and run.run.engine
    for keys, values in engine._cache._buffers:
        keys[0] = values[0] = NAN
    capacity = engine._cache.capacity
    engine.open(2, 8, 8, static=True)
    assert engine._cache.capacity == capacity  # taken over
    assert all(bool(torch.isfinite(one).all()) for layer in engine._cache._buffers for one in layer)
    assert model.generate(GOOD).tokens == wanted.tokens
