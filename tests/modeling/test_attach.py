"""Attaching: what is refused, what the hooks do while armed and what they leave alone otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    T5Config,
)

from safealign.errors import UnsupportedModelError
from safealign.layout import build_layout, request_row
from safealign.layout.collate import collate_layouts
from safealign.modeling.architectures import check_supported
from safealign.modeling.attach import RowPlan, attach
from safealign.modeling.features import plan_for
from safealign.modeling.safety_token import HeadSettings
from safealign.modeling.tiny import tiny_model

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
}


def _small(config: Any, **more: Any) -> Any:
    return AutoModelForCausalLM.from_config(config(**SMALL | more))


@pytest.mark.parametrize(
    ("config", "more", "sliding", "full"),
    [
        (MistralConfig, {"sliding_window": 3}, (0, 1), ()),
        (Phi3Config, {"sliding_window": 3}, (0, 1), ()),
        (Gemma2Config, {"head_dim": 8, "sliding_window": 3}, (0,), (1,)),
        (Qwen2Config, {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}, (1,), (0,)),
        (Qwen3Config, {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0}, (0, 1), ()),
    ],
    ids=["mistral", "phi3", "gemma2", "qwen2", "qwen3"],
)
def test_layers_with_a_window_get_it_in_their_mask(
    config: Any, more: dict[str, Any], sliding: tuple[int, ...], full: tuple[int, ...]
) -> None:
    """And the others do not; the slot is exempt."""
    lm = _small(config, **more).eval()
    parts, seen = attach(lm, HeadSettings()), {}
    for index, layer in enumerate(parts.layers):
        layer.register_forward_pre_hook(
            lambda module, args, kwargs, index=index: seen.update({index: kwargs["attention_mask"][0, 0]}),
            with_kwargs=True,
        )
    allowed = torch.ones(7, 7).tril()
    allowed[4, 6] = 1.0  # row 4 sees the slot
    mask = (1.0 - allowed) * torch.finfo(torch.float32).min
    with torch.no_grad(), parts.armed(RowPlan(1, mask[None, None], torch.arange(7)[None])):
        lm(input_ids=torch.arange(1, 7)[None], use_cache=False)
    near = allowed - torch.ones(7, 7).tril(-3)
    near[6] = allowed[6]
    assert sorted(seen) == [0, 1]
    assert all(torch.equal(seen[index] == 0, near.bool()) for index in sliding)
    assert all(torch.equal(seen[index] == 0, allowed.bool()) for index in full)


@pytest.mark.parametrize(
    ("config", "more"),
    [
        (LlamaConfig, {}),
        (MistralConfig, {"sliding_window": None}),
        (Qwen2Config, {}),
        (Qwen2Config, {"use_sliding_window": False, "sliding_window": 8}),
        (Qwen3Config, {"head_dim": 8}),
    ],
    ids=["llama", "mistral", "qwen2", "qwen2 with the window off", "qwen3"],
)
def test_full_attention_is_accepted(config: Any, more: dict[str, Any]) -> None:
    attach(_small(config, **more), HeadSettings())


def test_attention_kernels_without_a_float_mask_are_refused() -> None:
    lm = tiny_model()
    lm.config._attn_implementation = "flex_attention"
    with pytest.raises(UnsupportedModelError, match="sdpa or eager"):
        check_supported(lm)


def test_what_is_no_causal_language_model_is_refused() -> None:
    from transformers import T5EncoderModel

    small = T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(UnsupportedModelError, match="T5EncoderModel"):
        attach(T5EncoderModel(small), HeadSettings())


def test_the_token_starts_at_the_mean_embedding_or_the_role_tokens() -> None:
    lm = tiny_model()
    weight = lm.get_input_embeddings().weight
    torch.testing.assert_close(attach(lm, HeadSettings()).token.weight, weight.mean(dim=0))
    lm = tiny_model()
    parts = attach(lm, HeadSettings(), "assistant_role", [5, 7])
    torch.testing.assert_close(parts.token.weight, lm.get_input_embeddings().weight[[5, 7]].mean(dim=0))


@pytest.mark.parametrize(("init", "ids"), [("zeros", [1]), ("assistant_role", None), ("assistant_role", [])])
def test_an_unknown_init_is_refused(init: str, ids: list[int] | None) -> None:
    with pytest.raises(ValueError, match="init must be one of"):
        attach(tiny_model(), HeadSettings(), init, ids)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_token_and_head_are_fp32_whatever_the_model_is(dtype: torch.dtype) -> None:
    parts = attach(tiny_model().to(dtype), HeadSettings())
    kinds = {tensor.dtype for module in (parts.token, parts.head) for tensor in module.state_dict().values()}
    assert kinds == {torch.float32}


def test_they_are_submodules_of_the_language_model() -> None:
    lm = tiny_model()
    attach(lm, HeadSettings())
    names = {name for name, _ in lm.named_parameters() if "safety" in name}
    assert names == {"safety_token.weight", "safety_head.linear.weight", "safety_head.linear.bias"}


def test_disarmed_the_model_is_itself(build, probe) -> None:
    built = build()
    before = probe.plain(built.lm)
    built.parts.detach()
    assert torch.equal(before, probe.plain(built.lm))


def test_arming_twice_is_an_error_and_an_exception_disarms(build, probe) -> None:
    parts, plan = build().parts, RowPlan(0, torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, dtype=torch.long))
    with parts.armed(plan), pytest.raises(RuntimeError, match="armed already"), parts.armed(plan):
        pass
    with pytest.raises(KeyError), parts.armed(plan):
        raise KeyError
    with parts.armed(plan):
        pass


@pytest.mark.parametrize("gate", [True, False])
def test_the_last_row_comes_whole_and_in_one_piece(build, gate: bool) -> None:
    """Of a slice, matmul with frozen weights expands the vocabulary's matrix for each sequence."""
    built = build()
    n = 5
    allowed = torch.ones(2, 1, n + 1, n + 1).tril()
    mask = (1.0 - allowed) * torch.finfo(torch.float32).min
    positions = torch.arange(n + 1).expand(2, -1)
    ids = torch.arange(3, 3 + 2 * n).reshape(2, n)
    found = []
    for last_only in (False, True):
        with built.parts.armed(RowPlan(1, mask, positions, capture=gate, last_only=last_only)):
            found.append(built.parts.decoder(input_ids=ids, use_cache=False).last_hidden_state)
    assert found[1].is_contiguous() and found[1].shape[1] == 1
    torch.testing.assert_close(found[1], found[0][:, -1:])


@pytest.fixture
def batch(build) -> Any:
    """A model with a batch of two prompts that differ in length."""
    built = build()
    prompts = [[{"role": "user", "content": text}] for text in ("Why?", "Tell me about the ocean")]
    from safealign.data.rendering import Renderer

    texts = [Renderer(built.tokenizer).render(prompt) for prompt in prompts]
    width = max(len(text.input_ids) for text in texts)
    ids = torch.tensor([[*text.input_ids, *[0] * (width - len(text.input_ids))] for text in texts])
    safety = collate_layouts([build_layout(text, [request_row(text)]) for text in texts])
    return built, ids, safety


def test_the_output_holds_text_rows_only_and_the_capture_all(batch) -> None:
    built, ids, safety = batch
    with torch.no_grad(), built.parts.armed(plan_for(safety)) as capture:
        out = built.lm(input_ids=ids, use_cache=False)
    assert out.logits.shape[:2] == ids.shape
    assert capture.states.shape == (2, ids.shape[1] + 1, 2, 32)
    assert torch.equal(capture.row_states(), capture.states[:, ids.shape[1] :])


def test_embeddings_may_be_given_instead_of_ids(batch) -> None:
    built, ids, safety = batch
    embeds = built.lm.get_input_embeddings()(ids)
    with torch.no_grad(), built.parts.armed(plan_for(safety)):
        expected = built.lm(input_ids=ids, use_cache=False).logits
        assert torch.equal(built.lm(inputs_embeds=embeds, use_cache=False).logits, expected)


def test_compact_keeps_the_chosen_rows_in_order(batch) -> None:
    built, ids, safety = batch
    chosen = torch.zeros_like(ids, dtype=torch.bool)
    chosen[0, 3], chosen[1, 5:9] = True, True
    with torch.no_grad():
        with built.parts.armed(plan_for(safety)):
            everything = built.lm(input_ids=ids, use_cache=False).logits
        with built.parts.armed(plan_for(safety, chosen)):
            few = built.lm(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(few, everything[chosen].unsqueeze(0))


def test_states_are_those_of_the_named_depths_the_last_after_the_final_norm(build) -> None:
    built = build()
    lm, parts = built.lm, built.parts
    ids = torch.arange(9)[None]
    causal = torch.full((9, 9), torch.finfo(torch.float32).min).triu(1)[None, None]
    with torch.no_grad():
        with parts.armed(RowPlan(0, causal, torch.arange(9)[None])) as capture:
            lm(input_ids=ids, use_cache=False)
        expected = lm(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    assert parts.depths == (2, 4)
    for index, depth in enumerate(parts.depths):
        torch.testing.assert_close(capture.states[:, :, index], expected[depth])


def test_a_captureless_plan_keeps_no_state(batch) -> None:
    built, ids, safety = batch
    plan = plan_for(safety)
    plan.capture = False
    with torch.no_grad(), built.parts.armed(plan) as capture:
        built.lm(input_ids=ids, use_cache=False)
    assert not capture.blocks


def test_a_pool_that_is_not_given_is_an_error(build) -> None:
    with pytest.raises(ValueError, match="pools"):
        build().parts.features(torch.zeros(1, 2, 32))
