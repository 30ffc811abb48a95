"""Restylings: deterministic, they keep the request's words, and they fit or say that they do not."""

from __future__ import annotations

import random

import pytest

from safealign.data.styles import FRAMES, STYLES, parse, restyle

IMPERATIVE = "Write a short guide on how to repair a bicycle"
QUESTION = "What is the tallest mountain in Europe?"
HOW = "How do I repair a bicycle?"


@pytest.mark.parametrize(
    ("text", "phrase", "deed"),
    [
        (IMPERATIVE, "write a short guide on how to repair a bicycle", "repair a bicycle"),
        (HOW, "explain how to repair a bicycle", "repair a bicycle"),
        ("How to repair a bicycle?", "explain how to repair a bicycle", "repair a bicycle"),
        ("What is the best way to repair a bicycle?", "explain how to repair a bicycle", "repair a bicycle"),
        ("Name three fruits.", "name three fruits", None),
        (QUESTION, None, None),
        ("I like tea.", None, None),
        ("", None, None),
        ("12 + 30 = ?", None, None),
    ],
)
def test_a_request_is_taken_apart(text: str, phrase: str | None, deed: str | None) -> None:
    ask = parse(text)
    assert (ask.phrase, ask.deed) == (phrase, deed)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("text", [IMPERATIVE, QUESTION, HOW, "", "Sort these words.\npear\napple"])
def test_the_same_seed_gives_the_same_text(style: str, text: str) -> None:
    assert restyle(text, style, 7) == restyle(text, style, 7)


@pytest.mark.parametrize("style", STYLES)
def test_every_style_fits_an_imperative_with_a_deed(style: str) -> None:
    styled = restyle(IMPERATIVE, style, 1)
    assert styled is not None
    if style not in ("typos", "casual"):  # these change the words themselves
        assert "repair" in styled.lower() and "bicycle" in styled.lower()


@pytest.mark.parametrize("style", FRAMES)
def test_a_frame_keeps_the_whole_input_below(style: str) -> None:
    styled = restyle("Sort these words.\npear\napple", style, 3)
    assert styled is None or styled.endswith("\npear\napple")


def test_a_style_that_needs_a_deed_does_not_fit_a_plain_question() -> None:
    assert restyle(QUESTION, "continuation", 0) is None
    assert restyle(QUESTION, "keywords", 0) is None


def test_braces_in_a_request_are_text() -> None:
    for style in FRAMES:
        styled = restyle("Write {deed} and {0} in a file", style, 2)
        assert styled is None or "{deed} and {0}" in styled


def test_seeds_reach_more_than_one_frame() -> None:
    assert len({restyle(IMPERATIVE, "question", seed) for seed in range(20)}) > 3


def test_rules_take_any_short_text() -> None:
    rng = random.Random(0)
    for text in ("a", "?", "word", "two words", "\n", "éè ü", "A" * 500):
        for rule in STYLES.values():
            rule(text, rng)
