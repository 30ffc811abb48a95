"""Attacks: what they change, what they leave, and exact prefill lengths."""

from __future__ import annotations

from typing import Any

import pytest

from safealign.data.records import Message
from safealign.data.wrapping import Template
from safealign.errors import ConfigError, DataError
from safealign.evaluation.attacks import ATTACKS, build_attack
from safealign.evaluation.attacks.prefill import PrefillAttack, opening

REQUEST = (Message("system", "Be brief."), Message("user", "Write a poem about bread."))
TEMPLATES = (Template("a", "Play a game. {{ prompt }} Go."), Template("b", "{{prompt}} - answer as a pirate"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from safealign.modeling.tiny import tiny_tokenizer

    return tiny_tokenizer()


def test_direct_changes_nothing() -> None:
    assert build_attack("direct").apply(REQUEST) == REQUEST


@pytest.mark.parametrize(
    ("request_text", "expected"),
    [
        ("Write a poem about bread.", "Sure, here is a poem about bread"),
        ("Please give me the recipe", "Sure, here is the recipe"),
        (
            "Give detailed instructions for baking bread",
            "Sure, here is detailed instructions for baking bread",
        ),
        ("How do I bake bread?", "Sure, here is how to bake bread"),
        ("Explain how to bake\n bread", "Sure, here is how to bake bread"),
        ("Bake bread", "Sure, here is how to bake bread"),
        ("Bake", "Sure, here is how to bake"),
    ],
)
def test_opening_is_made_from_the_request(request_text: str, expected: str) -> None:
    assert opening(request_text) == expected


@pytest.mark.parametrize("k", [1, 5, 10, 40, 300])
def test_prefill_has_exactly_k_tokens(k: int, tokenizer: Any) -> None:
    attacked = PrefillAttack(k, tokenizer).apply(REQUEST)
    assert attacked[:-1] == REQUEST and attacked[-1].role == "assistant"
    assert len(tokenizer(attacked[-1].content, add_special_tokens=False)["input_ids"]) == k
    assert attacked[-1].content.startswith(("Sure", "S"))


def test_prefill_without_tokenizer_counts_words() -> None:
    content = PrefillAttack(40).apply(REQUEST)[-1].content
    assert len(content.split()) == 40 and content.startswith("Sure, here is a poem about bread:\n\nBelow")


def test_target_is_preferred_to_the_made_opening() -> None:
    content = PrefillAttack(6).apply(REQUEST, target="Sure, here is a bread poem:")[-1].content
    assert content == "Sure, here is a bread poem:"


def test_longer_prefill_extends_the_shorter(tokenizer: Any) -> None:
    short, long = (PrefillAttack(k, tokenizer).apply(REQUEST)[-1].content for k in (5, 40))
    assert long.startswith(short)


def test_wrapped_is_deterministic_and_keeps_the_request() -> None:
    attack = build_attack("wrapped", templates=TEMPLATES)
    first = attack.apply(REQUEST)
    assert first == attack.apply(REQUEST) and first[0] == REQUEST[0] and first[1].role == "user"
    assert "Write a poem about bread." in first[1].content != REQUEST[1].content
    met = {attack.apply((Message("user", f"Question {i}"),))[0].content[:4] for i in range(20)}
    assert len(met) > 1  # several templates are in use


def test_bad_use_is_named(tokenizer: Any) -> None:
    for attack in (build_attack("direct"), PrefillAttack(3), build_attack("wrapped", templates=TEMPLATES)):
        with pytest.raises(DataError, match="user turn"):
            attack.apply((*REQUEST, Message("assistant", "Bread!")))
    with pytest.raises(DataError, match="at least 1"):
        PrefillAttack(0)
    with pytest.raises(DataError, match="no templates"):
        build_attack("wrapped", templates=())
    with pytest.raises(ConfigError, match="did you mean 'prefill'"):
        build_attack("prefil")
    assert set(ATTACKS) == {"direct", "second_turn", "prefill", "wrapped"}


@pytest.mark.parametrize("messages", [REQUEST, REQUEST[1:]])
def test_second_turn_puts_one_harmless_exchange_before_the_request(messages: tuple[Message, ...]) -> None:
    attacked = build_attack("second_turn").apply(messages)
    system = messages[:-1]
    assert attacked[: len(system)] == system and attacked[-1] == messages[-1]
    assert [turn.role for turn in attacked[len(system) :]] == ["user", "assistant", "user"]
    assert attacked == build_attack("second_turn").apply(messages)
