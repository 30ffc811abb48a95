"""The best of m answers: the prompt is fed once, the arg max is returned, as a forward of its own would choose."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import NEVER, TALKS, build

from safealign.errors import ConfigError, DataError, SafealignError
from safealign.model import SafeModel
from safealign.modeling.texts import Text
from safealign.ranking import Ranker, RankerSettings, ranker_block

ASKED = TALKS[1]


def with_ranker(model: SafeModel, pool: str = "last", layer: float = 0.5) -> SafeModel:
    """The model with a random ranker beside it."""
    torch.manual_seed(5)
    ranker = Ranker(RankerSettings(layer=layer, pool=pool, hidden=16, heads=2), 32).eval()
    assert model.card is not None
    card = replace(model.card, ranker=ranker_block(ranker, {"temperature": 0.9, "top_p": 1.0}, {}))
    return SafeModel(model.hf, model.tokenizer, model.parts, card, ranker)


@pytest.fixture
def ranked() -> SafeModel:
    return with_ranker(build(NEVER))


def _forwards(model: SafeModel) -> list[int]:
    """Rows of text that each forward of the model feeds from now on."""
    seen: list[int] = []
    model.hf.model.layers[0].register_forward_hook(lambda _, args, out: seen.append(args[0].shape[:2].numel()))
    return seen


@pytest.mark.parametrize("how", [{"safety": False}, {"gate": False}, {}], ids=str)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_shared_prompt_gives_the_text_of_unshared_ones(ranked: SafeModel, how: dict[str, Any], cache: str) -> None:
    how = {**how, "cache": cache, "temperature": 1.0, "seed": 7}
    found = ranked.generate(ASKED, best_of=6, ranker="random", **how)
    alone = ranked.generate_batch([ASKED] * 6, **how)
    assert [out.tokens for out in found.candidates] == [out.tokens for out in alone]
    assert len({out.tokens for out in alone}) == 6
    for mine, theirs in zip(found.candidates, alone, strict=True):
        assert [e.position for e in mine.trace] == [e.position for e in theirs.trace]
        logits = [torch.tensor([e.logit for e in out.trace]) for out in (mine, theirs)]
        torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pool", ["last", "mean"])
@pytest.mark.parametrize("how", [{"safety": False}, {"gate": False}, {}, {"prefill_chunk": 3, "gate": False}], ids=str)
@pytest.mark.parametrize("messages", TALKS, ids=["plain", "system", "prefill"])
def test_the_arg_max_is_that_of_a_second_forward(how: dict[str, Any], pool: str, messages: Any) -> None:
    model = with_ranker(build(NEVER), pool)
    out = model.generate(messages, best_of=5, **how)
    scores = torch.tensor(out.ranking.scores)
    assert out.tokens == out.candidates[int(scores.argmax())].tokens and len(out.candidates) == 5
    (prompt,) = model.prompts([messages])
    said = [[t for t in one.tokens if t not in model.renderer.eos_ids] for one in out.candidates]
    states = model.extractor((0.5,), (pool,)).candidates(prompt.rendered, said).flatten(1)
    assert model.ranker is not None
    torch.testing.assert_close(scores, torch.tensor(model.ranker.scores(states)), atol=1e-5, rtol=1e-4)
    assert scores.std() > 1e-4
    assert [out.ranking.scores[i] for i in out.ranking.order] == sorted(out.ranking.scores, reverse=True)


def test_the_prompt_is_fed_once_and_states_need_no_forward_of_their_own() -> None:
    model = with_ranker(build(NEVER))
    n_prompt = model.prompts([ASKED])[0].n_text
    rows = _forwards(model)
    model.generate(ASKED, best_of=6, safety=False, max_new_tokens=5, min_new_tokens=5)
    assert rows == [n_prompt, *[6] * 5]  # the last one feeds the last tokens, whose states are read


def test_an_open_gates_answers_are_read_again_without_it(ranked: SafeModel) -> None:
    """The states of text that sees a verdict are not those that a ranker learnt from."""
    out = ranked.generate(ASKED, best_of=4)
    texts = [one.text for one in out.candidates]
    assert len(set(texts)) == 4
    (prompt,) = ranked.prompts([ASKED])
    said = [[t for t in one.tokens if t not in ranked.renderer.eos_ids] for one in out.candidates]
    states = ranked.extractor((0.5,)).candidates(prompt.rendered, said).flatten(1)
    assert ranked.ranker is not None
    assert out.ranking.scores == pytest.approx(ranked.ranker.scores(states), abs=1e-5)


def test_several_conversations_in_small_batches(ranked: SafeModel) -> None:
    done: list[int] = []
    how: dict[str, Any] = {"safety": False, "seed": 3, "best_of": 3}
    together = ranked.generate_batch(TALKS, batch_size=4, progress=done.append, **how)
    assert sum(done) == 9
    for index, (messages, out) in enumerate(zip(TALKS, together, strict=True)):
        alone = ranked.generate(messages, **{**how, "seed": 3 + 3 * index})
        assert [one.tokens for one in out.candidates] == [one.tokens for one in alone.candidates]
        assert out.ranking.scores == pytest.approx(alone.ranking.scores, abs=1e-4)
    assert ranked.generate_batch([], best_of=3) == []


def test_ranking_texts_is_what_best_of_does(ranked: SafeModel) -> None:
    texts = ["It is water.", "No.", "", "Rain falls from a cloud, and then the sun comes"]
    found = ranked.rank(ASKED, texts)
    turned = ranked.rank(ASKED, texts[::-1])
    assert found.scores == pytest.approx(turned.scores[::-1], abs=1e-5)
    assert found.best == found.order[0] and sorted(found.order) == [0, 1, 2, 3]
    assert ranked.rank(TALKS[2], ["and stormy night"]).order == (0,)


@pytest.mark.parametrize("ranker", ["srr", "head"])
@pytest.mark.parametrize("how", [{"safety": False}, {"gate": False}, {}], ids=str)
@pytest.mark.parametrize("messages", TALKS[1:], ids=["system", "prefill"])
def test_a_stop_string_is_not_scored(ranked: SafeModel, how: dict[str, Any], ranker: str, messages: Any) -> None:
    """What is scored is the text that is returned, wherever within a token it ends."""
    plain = ranked.generate(messages, best_of=6, ranker=ranker, **how)
    long = [one.text for one in plain.candidates]
    stop = [text[len(text) // 2 :][:2] for text in long]
    out = ranked.generate(messages, best_of=6, ranker=ranker, stop=stop, **how)
    texts = [one.text for one in out.candidates]
    assert all(text != before for text, before in zip(texts, long, strict=True))
    assert not any(part in text for text in texts for part in stop)
    assert out.ranking.scores == pytest.approx(ranked.rank(messages, texts, ranker=ranker).scores, abs=1e-5)


def test_states_are_those_of_the_text_before_a_stop_string(ranked: SafeModel) -> None:
    (prompt,) = ranked.prompts([ASKED])
    extractor = ranked.extractor((0.5,))
    ((plain, _),) = ranked.generate_with_states([ASKED], extractor, safety=False)
    ((cut, states),) = ranked.generate_with_states([ASKED], extractor, safety=False, stop=[plain.text[3:]])
    assert cut.text == plain.text[:3]
    ids = ranked.renderer.content_ids(cut.text)
    wanted = extractor.read([Text.prompt(prompt.rendered), Text.answer(prompt.rendered, ids)])
    torch.testing.assert_close(states, torch.cat(wanted), atol=1e-5, rtol=1e-5)


def test_the_head_prefers_what_it_finds_harmless() -> None:
    model = build(NEVER)
    answers = ["one two three four five six seven eight nine ten eleven twelve", "No", ""]
    before = model.rank(ASKED, answers, ranker="head")
    assert before.scores[2] == float("-inf") and before.order[-1] == 2
    assert model.parts is not None
    with torch.no_grad():
        model.parts.head.linear.weight.neg_()
        model.parts.head.linear.bias.neg_()
    after = model.rank(ASKED, answers[1:2], ranker="head")  # one window: the logit changes its sign
    assert after.scores[0] == pytest.approx(-before.scores[1], abs=1e-4)
    out = model.generate(ASKED, best_of=4, ranker="head")
    assert out.ranking.scores[out.ranking.best] == max(out.ranking.scores)


def test_the_drawing_is_the_rankers_unless_the_caller_says_otherwise(ranked: SafeModel) -> None:
    own = ranked.generate(ASKED, best_of=3, seed=1)
    said = ranked.generate(ASKED, best_of=3, seed=1, temperature=0.9, top_p=1.0)
    assert [one.tokens for one in own.candidates] == [one.tokens for one in said.candidates]
    with pytest.raises(ConfigError, match="all the same"):
        ranked.generate(ASKED, best_of=3, temperature=0.0)
    one = ranked.generate(ASKED, best_of=1, ranker="nonsense")  # nothing to choose: as ever
    assert one.candidates == () and one.ranking is None and one.tokens == ranked.generate(ASKED).tokens


def test_a_scorer_of_ones_own(ranked: SafeModel) -> None:
    class Longest:
        extractor = None

        def scores(self, prompt: Any, answers: Any, states: Any) -> list[float]:
            return [float(len(tokens)) for tokens in answers]

    out = ranked.generate(ASKED, best_of=4, ranker=Longest())
    assert out.ranking.scores == tuple(float(one.n_tokens) for one in out.candidates)
    assert ranked.rank(ASKED, ["a", "a longer one"], ranker=Longest()).best == 1


def test_what_is_missing_is_named(calm: SafeModel) -> None:
    with pytest.raises(ConfigError, match="recipe=srr"):
        calm.generate(ASKED, best_of=2)
    bare = SafeModel(calm.hf, calm.tokenizer)
    with pytest.raises(ConfigError, match="no safety head"):
        bare.generate(ASKED, best_of=2, ranker="head")
    with pytest.raises(ConfigError, match="did you mean 'random'"):
        bare.rank(ASKED, ["x"], ranker="radnom")
    other = SafeModel(calm.hf, calm.tokenizer, ranker=Ranker(RankerSettings(hidden=16, heads=2), 7))
    with pytest.raises(ConfigError, match="states of 7 values"):
        other.rank(ASKED, ["x"])
    with pytest.raises(ConfigError, match="unknown decoding option 'best_of'"):
        next(calm.stream(ASKED, best_of=2))


_MODEL = build(NEVER)
_NUMBERS = st.one_of(st.integers(-3, 3), st.floats())
_ANYTHING = st.one_of(st.none(), st.booleans(), _NUMBERS, st.text(max_size=5), st.lists(_NUMBERS, max_size=2))


@settings(max_examples=60)
@given(best_of=_ANYTHING, ranker=_ANYTHING)
def test_any_other_argument_is_one_clear_error(best_of: Any, ranker: Any) -> None:
    valid = isinstance(best_of, int) and not isinstance(best_of, bool) and best_of >= 1
    if valid and best_of == 1:
        return
    with pytest.raises(ConfigError, match="ranker" if valid else "best_of must be a whole number"):
        _MODEL.generate(ASKED, best_of=best_of, ranker=ranker, max_new_tokens=1)


@settings(max_examples=60)
@given(candidates=st.one_of(_ANYTHING, st.lists(_ANYTHING, min_size=1, max_size=3)), messages=_ANYTHING)
def test_any_other_answers_are_one_clear_error(candidates: Any, messages: Any) -> None:
    texts = isinstance(candidates, list) and bool(candidates) and all(isinstance(one, str) for one in candidates)
    if not texts:
        with pytest.raises(DataError, match="to rank"):
            _MODEL.rank(ASKED, candidates, ranker="random")
    if not isinstance(messages, list):
        with pytest.raises(SafealignError):
            _MODEL.rank(messages, ["x"], ranker="random")
    with pytest.raises(DataError, match="surrogate"):
        _MODEL.rank(ASKED, ["\ud800"], ranker="random")
