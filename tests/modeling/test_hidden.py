"""The extractor against transformers' own hidden states; padding, batches and hooks that leave no trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from safealign.data.rendering import Renderer
from safealign.errors import ConfigError, DataError
from safealign.layout import Span, build_layout, request_row, window_row
from safealign.layout.collate import collate_layouts
from safealign.modeling.attach import attach
from safealign.modeling.features import batch_features, plan_for
from safealign.modeling.hidden import HiddenExtractor
from safealign.modeling.safety_token import HeadSettings
from safealign.modeling.texts import Text, unpadded
from safealign.modeling.tiny import ARCHITECTURES, tiny_model, tiny_tokenizer

RENDERER = Renderer(tiny_tokenizer())
QUESTIONS = ("Why?", "Tell me about the ocean and all its islands", "Name a tree and a bird.")
ANSWERS = ("It is so.", "Well, wide", "An oak, an owl, and a third thing besides")
LAYERS, DEPTHS = (0.25, 0.5, 1.0), (1, 2, 4)


def _prompts() -> list[Any]:
    return [RENDERER.render([{"role": "user", "content": question}]) for question in QUESTIONS]


def _texts() -> list[Text]:
    answers = [tuple(RENDERER.tokenizer(answer)["input_ids"]) for answer in ANSWERS]
    return [text for p, a in zip(_prompts(), answers, strict=True) for text in (Text.prompt(p), Text.answer(p, a))]


def _own(lm: Any, text: Text) -> torch.Tensor:
    """`[P, (last, mean), depths, H]` from transformers' hidden states of the text alone."""
    with torch.no_grad():
        states = lm(torch.tensor([list(text.input_ids)]), output_hidden_states=True, use_cache=False).hidden_states
    found = []
    for place in text.places:
        rows = [row for span in place for row in range(*span)]
        by_depth = [states[depth][0, rows] for depth in DEPTHS]
        found.append(torch.stack([torch.stack([s[-1] for s in by_depth]), torch.stack([s.mean(0) for s in by_depth])]))
    return torch.stack(found)


def _hooks(lm: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in lm.modules())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_depths_and_pools_are_transformers_own_in_batches_of_any_size(architecture: str) -> None:
    lm, texts = tiny_model(architecture), _texts()
    wanted = [_own(lm, text) for text in texts]
    for batch_size in (1, 4, 32):
        extractor = HiddenExtractor(lm, LAYERS, ("last", "mean"), batch_size=batch_size)
        assert extractor.shape == (2, 3, 32)
        for found, expected in zip(extractor.read(texts), wanted, strict=True):
            torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_padded_on_either_side_are_the_same_texts(side: str) -> None:
    lm, ids = tiny_model(), [list(text.input_ids) for text in _texts()]
    padded = RENDERER.tokenizer.pad({"input_ids": ids}, padding_side=side, return_tensors="pt")
    rows = unpadded(padded["input_ids"], padded["attention_mask"])
    assert [list(row) for row in rows] == ids
    texts = [Text(row, ((Span(0, len(row)),),)) for row in rows]
    with torch.no_grad():
        positions = (padded["attention_mask"].cumsum(1) - 1).clamp(min=0)
        states = lm(**padded, position_ids=positions, output_hidden_states=True).hidden_states[2]
    last = -1 if side == "left" else padded["attention_mask"].sum(1) - 1
    found = torch.stack(HiddenExtractor(lm, (0.5,)).read(texts))[:, 0, 0, 0]
    torch.testing.assert_close(found, states[torch.arange(len(ids)), last], atol=1e-5, rtol=1e-5)


def test_a_mask_with_a_hole_is_refused() -> None:
    ids = torch.ones(1, 3, dtype=torch.long)
    for mask in ([1, 0, 1], [0, 0, 0]):
        with pytest.raises(DataError, match="without holes"):
            unpadded(ids, torch.tensor([mask]))


def test_candidates_stand_under_the_same_instruction_whatever_their_neighbours() -> None:
    lm, prompt = tiny_model(), _prompts()[1]
    answers = [tuple(RENDERER.tokenizer(answer)["input_ids"]) for answer in ANSWERS]
    extractor = HiddenExtractor(lm, LAYERS, ("last", "mean"))
    found = extractor.candidates(prompt, [*answers, ()])
    assert found.shape == (5, 2, 3, 32)
    turned = extractor.candidates(prompt, answers[::-1])
    torch.testing.assert_close(turned[1:], found[1:4].flip(0), atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(turned[0], found[0], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(found[4, 0], found[0, 0], atol=2e-6, rtol=1e-5)  # nothing was said yet


def test_a_prefill_is_part_of_the_answer_and_not_of_the_instruction() -> None:
    messages = [{"role": "user", "content": "Go on"}, {"role": "assistant", "content": "It was a dark"}]
    rendered = RENDERER.render(messages, close=False)
    bare = RENDERER.render(messages[:1])
    assert Text.prompt(rendered) == Text.prompt(bare)
    start = len(bare.input_ids)
    assert rendered.input_ids[start:] and Text.answer(rendered).places == ((Span(start, len(rendered.input_ids)),),)


@pytest.mark.parametrize("pool", [("row",), ("mean", "last"), ("row", "mean", "last")])
def test_features_are_the_safety_heads_inputs(pool: tuple[str, ...]) -> None:
    lm = tiny_model()
    parts = attach(lm, HeadSettings((0.5, 1.0), pool))
    rendered = [
        RENDERER.render([{"role": "user", "content": q}, {"role": "assistant", "content": a}])
        for q, a in zip(QUESTIONS, ANSWERS, strict=True)
    ]
    layouts = [build_layout(r, [request_row(r), window_row(r, *r.response)]) for r in rendered]
    texts = [Text.of_layout(r.input_ids, layout) for r, layout in zip(rendered, layouts, strict=True)]
    found = HiddenExtractor.of_head(parts).read(texts)
    for text, layout, mine in zip(rendered, layouts, found, strict=True):
        batch = collate_layouts([layout])
        with torch.no_grad(), parts.armed(plan_for(batch)) as capture:
            lm(input_ids=torch.tensor([text.input_ids]), use_cache=False)
        assert mine.shape == (2, len(pool), 2, 32)
        torch.testing.assert_close(mine.flatten(1), batch_features(parts, capture, batch)[0], atol=2e-6, rtol=1e-5)
    if "row" in pool:
        with torch.no_grad():
            parts.token.weight.add_(1.0)
        assert (HiddenExtractor.of_head(parts).read(texts)[0][:, 0] - found[0][:, 0]).abs().max() > 1e-3


def test_only_what_is_asked_for_is_computed_and_hooks_are_gone() -> None:
    lm = tiny_model()
    ran: list[int] = []
    for depth, layer in enumerate(lm.model.layers, 1):
        layer.register_forward_hook(lambda *_, depth=depth: ran.append(depth))
    before = _hooks(lm)
    HiddenExtractor(lm, (0.5,)).read(_texts()[:1])
    assert max(ran) < 3 and _hooks(lm) == before


def test_hooks_are_gone_after_an_exception_and_the_model_is_as_it_was() -> None:
    lm = tiny_model().train()
    before = _hooks(lm)

    def fail(*_: Any) -> None:
        raise RuntimeError("no memory")

    handle = lm.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no memory"):
        HiddenExtractor(lm, (0.25, 1.0)).read(_texts())
    handle.remove()
    assert _hooks(lm) == before and lm.training


def test_what_cannot_be_read_is_refused_with_a_reason() -> None:
    lm = tiny_model()
    with pytest.raises(ConfigError, match="safety rows"):
        HiddenExtractor(lm, pool=("row",))
    with pytest.raises(ValueError, match="fractions of depth"):
        HiddenExtractor(lm, (1.5,))
    extractor = HiddenExtractor(lm)
    for text in (Text((), ()), Text((1, 2), ((Span(1, 3),),))):
        with pytest.raises(DataError, match="no rows"):
            extractor.read([text])
    rendered = _prompts()[0]
    laid_out = Text.of_layout(rendered.input_ids, build_layout(rendered, [request_row(rendered)]))
    with pytest.raises(DataError, match="no safety parts"):
        extractor.read([laid_out])
    with_parts = HiddenExtractor.of_head(attach(lm, HeadSettings()))
    with pytest.raises(DataError, match="give its layout"):
        with_parts.read([Text.prompt(rendered)])


def test_progress_counts_texts(build: Callable[..., Any]) -> None:
    done: list[int] = []
    HiddenExtractor(build().lm, batch_size=4).read(_texts(), progress=done.append)
    assert done == [4, 2]
