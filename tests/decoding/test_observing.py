"""States taken while an answer is made, against those of a full forward over prompt and answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from comparing import OFF
from scripted import ScriptedRules
from tiny_models import TALKS, build
from worlds import World, make_world

from safealign.decoding import AnswerStates, CachedEngine, DecodedRow, Decoder, DecodingOptions, spoken
from safealign.errors import ConfigError, DataError
from safealign.layout import Span
from safealign.modeling.hidden import HiddenExtractor
from safealign.modeling.texts import Text
from safealign.modeling.tiny import ARCHITECTURES

LAYERS, POOL = (0.25, 0.5, 1.0), ("last", "mean")


RATES = {"query_rate": 0.0, "prefix_rate": 0.0, "window_rate": 0.15, "confirm_rate": 0.9}


def _decode(
    world: World,
    options: DecodingOptions,
    *,
    eos: Sequence[int] = (),
    script: int | None = None,
    rows: int = 3,
    states: type[AnswerStates] = AnswerStates,
    **rates: float,
) -> tuple[list[DecodedRow], AnswerStates]:
    """Answers to all prompts, `rows` at a time, under the rules or a script, and what was seen of them."""
    observer = states(HiddenExtractor(world.lm, LAYERS, POOL))
    parts = world.parts if options.safety else None
    engine = CachedEngine(world.lm, parts, world.settings, gate=options.gate, observer=observer)
    more: dict[str, Any] = {"encoder": world.renderer, "eos_ids": eos, "calibrated": OFF, "observer": observer}
    decoder = Decoder(engine, options, tokenizer=world.renderer.tokenizer, **more)
    if script is not None:
        decoder.rules = ScriptedRules.like(decoder.rules, script, **rates)
    prompts = world.prompts()
    return decoder.decode(prompts, [0] * len(prompts), rows), observer


def _read(world: World, row: DecodedRow) -> torch.Tensor:
    """What a forward of its own over prompt and answer finds."""
    rendered = row.prompt.rendered
    texts = [Text.prompt(rendered), Text.answer(rendered, spoken(row))]
    return torch.cat(HiddenExtractor(world.lm, LAYERS, POOL, batch_size=1).read(texts))


def _check(world: World, rows: Sequence[DecodedRow], observer: AnswerStates) -> None:
    for row in rows:
        found = observer.of(row)
        assert found is not None and found.shape == (2, 2, 3, 32)
        torch.testing.assert_close(found, _read(world, row), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_states_are_those_of_a_full_forward(architecture: str) -> None:
    world = make_world(architecture=architecture)
    for parameter in world.lm.parameters():  # as initialised: large states would hide small faults
        parameter.data.mul_(0.25 if parameter.ndim == 2 else 1.0)
    rows, observer = _decode(world, DecodingOptions(safety=False, max_new_tokens=12))
    assert {row.finish for row in rows} == {"length"}
    _check(world, rows, observer)


@pytest.mark.parametrize(
    "changes",
    [{"cache": "static"}, {"cache": "dynamic", "prefill_chunk": 4}, {"temperature": 1.0}, {"max_new_tokens": 1}],
    ids=str,
)
def test_however_the_text_is_fed(world: World, with_options: Any, changes: dict[str, Any]) -> None:
    rows, observer = _decode(world, with_options(safety=False, **changes), rows=2)
    _check(world, rows, observer)


def test_an_end_of_turn_is_no_part_of_the_answer(world: World, with_options: Any) -> None:
    options = with_options(safety=False)
    plain, _ = _decode(world, options)
    eos = [plain[0].tokens[3], plain[1].tokens[0]]  # the second answer is over before it begins
    rows, observer = _decode(world, options, eos=eos)
    assert rows[0].finish == rows[1].finish == "stop" and not spoken(rows[1])
    _check(world, rows, observer)
    empty = observer.of(rows[1])
    assert empty is not None and torch.equal(empty[0, 0], empty[1, 0])


@pytest.mark.parametrize("script", [11, 12])
@pytest.mark.parametrize("dependency", ["low", "medium"])
def test_withdrawn_tokens_leave_no_trace(world: World, with_options: Any, script: int, dependency: str) -> None:
    options = with_options(gate=False, dependency=dependency, max_new_tokens=30)
    rows, observer = _decode(world, options, script=script, **RATES)
    assert any((row.intervened_at or 0) > 1 for row in rows)
    _check(world, rows, observer)


def test_refused_from_the_start(world: World, with_options: Any) -> None:
    """The trigger is fed after the prompt's last row is fed again."""
    rows, observer = _decode(world, with_options(gate=False), script=0, query_rate=1.0)
    assert all(row.intervened_at == 0 for row in rows)
    _check(world, rows, observer)


@pytest.mark.parametrize("window_rate", [0.0, 0.15])
def test_under_the_gate_states_are_the_references(world: World, with_options: Any, window_rate: float) -> None:
    """Each row sees the verdict that stood when it was made, and keeps the state that it had then."""
    options, rates = with_options(), RATES | {"window_rate": window_rate}
    rows, observer = _decode(world, options, script=11, **rates)
    rules = ScriptedRules.like(world.decoder(options, OFF).rules, 11, **rates)
    extractor = HiddenExtractor(world.lm, LAYERS, POOL, parts=world.parts)
    for row in rows:
        wanted = world.reference(row.prompt, options, OFF, (), rules=rules)
        rendered, found, layout = row.prompt.rendered, observer.of(row), wanted.layout
        ids, first = (*rendered.input_ids, *row.tokens), rendered.query_end + 1
        assert row.tokens == wanted.tokens and found is not None and layout is not None
        rest = len(ids) - layout.n_text  # tokens after the last verdict, which go on seeing it
        layout = replace(layout, n_text=len(ids), sees=(*layout.sees, *[layout.sees[-1]] * rest))
        text = Text(ids, ((Span(0, first),), (Span(first, len(ids)),)), layout)
        torch.testing.assert_close(found, extractor.read([text])[0], atol=1e-5, rtol=1e-4)
        assert (found[1] - _read(world, row)[1]).abs().max() > 1e-3  # the slot does change them
    assert any((row.intervened_at or 0) > 1 for row in rows) == (window_rate > 0)


def test_a_refusal_that_no_forward_made_has_no_states(world: World, with_options: Any) -> None:
    rows, observer = _decode(world, with_options(dependency="high"), script=1, query_rate=1.0)
    assert {row.finish for row in rows} == {"refusal"} and {observer.of(row) is None for row in rows} == {True}


def test_looking_changes_nothing_and_costs_one_forward_at_most(world: World, with_options: Any) -> None:
    ran: list[int] = []
    handle = world.lm.model.layers[0].register_forward_hook(lambda *_: ran.append(1))
    options = with_options(safety=False)
    plain = world.decoder(options, OFF, eos=()).decode(world.prompts(), [0] * 6, 6)
    alone, hooks = len(ran), [len(layer._forward_hooks) for layer in world.lm.model.layers]
    rows, observer = _decode(world, options, rows=6)
    assert [row.tokens for row in rows] == [row.tokens for row in plain]
    assert len(ran) - alone <= alone + 1
    handle.remove()
    assert [len(layer._forward_hooks) for layer in world.lm.model.layers] == [hooks[0] - 1, *hooks[1:]]
    del rows, plain
    assert not observer._records


@pytest.mark.parametrize("script", [None, 11])
def test_only_rows_in_the_batch_are_kept(world: World, with_options: Any, script: int | None) -> None:
    """However many answers a call has, and though all of them are there until its end."""
    kept: list[int] = []

    class Counting(AnswerStates):
        def fed(self, row: Any, tokens: Any, states: torch.Tensor) -> None:
            super().fed(row, tokens, states)
            kept.append(len(self._records))

    options = with_options(gate=False, safety=script is not None)
    rows, observer = _decode(world, options, script=script, rows=2, states=Counting, **RATES)
    assert len(rows) == 6 and max(kept) == 2 and not observer._records
    _check(world, rows, observer)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_states_that_are_not_finite_are_an_error(world: World, with_options: Any, bad: float) -> None:
    class Overflowing(AnswerStates):
        def fed(self, row: Any, tokens: Any, states: torch.Tensor) -> None:
            super().fed(row, tokens, states.index_fill(-1, torch.tensor([3]), bad))

    with pytest.raises(DataError, match="not finite in this number format"):
        rows, observer = _decode(world, with_options(safety=False), states=Overflowing)
        observer.of(rows[0])


def test_safety_rows_cannot_be_pooled(world: World) -> None:
    with pytest.raises(ConfigError, match="no safety rows"):
        AnswerStates(HiddenExtractor(world.lm, pool=("row",), parts=world.parts))


@pytest.mark.parametrize("options", [{"safety": False}, {"dependency": "high", "schedule": "every"}], ids=str)
def test_a_model_answers_with_states(options: dict[str, Any]) -> None:
    model = build({"query": None, "window": -1e3, "prefix": None} if "dependency" in options else {})
    extractor = model.extractor(LAYERS, POOL)
    found = model.generate_with_states(TALKS, extractor, gate=False, **options)
    plain = model.generate_batch(TALKS, gate=False, **options)
    assert [output.tokens for output, _ in found] == [output.tokens for output in plain]
    for messages, (output, states) in zip(TALKS, found, strict=True):
        (prompt,) = model.prompts([messages])
        said = [token for token in output.tokens if token not in model.renderer.eos_ids]
        wanted = extractor.read([Text.prompt(prompt.rendered), Text.answer(prompt.rendered, said)])
        torch.testing.assert_close(states, torch.cat(wanted), atol=1e-5, rtol=1e-5)
