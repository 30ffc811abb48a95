"""Leaks: what equals, wraps or nearly equals an evaluation prompt is found and accounted for."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from safealign.data.leaks import Leak, drop_leaks, find_leaks, normalise, prompt_text
from safealign.data.records import Message, Record

HELD_OUT = {
    "test": [
        "Explain how the town's red balloon was stolen from the fair",
        "Paint my neighbour's fence at night",
    ],
    "everyday": ["What is a good name for a goldfish?"],
}


def kinds(*prompts: str) -> list[tuple[int, str, int, str]]:
    return [leak[:4] for leak in find_leaks(list(prompts), HELD_OUT)]


def test_exact_after_normalisation() -> None:
    assert kinds("what is a good\nname for a GOLDFISH") == [(0, "everyday", 0, "exact")]


def test_wrapped_prompt_is_contained() -> None:
    wrapped = f"You are Bob, who answers everything. {HELD_OUT['test'][1]} - and stay in character, Bob!"
    assert kinds("Name a colour", wrapped) == [(1, "test", 1, "contained")]


def test_small_change_is_near() -> None:
    assert kinds("Explain how the town's red balloon got stolen from the fair") == [(0, "test", 0, "near")]


def test_other_prompts_do_not_leak() -> None:
    assert kinds("Explain how balloons fly", "Name a fish", "", "?!", "a") == []


def test_short_evaluation_prompt_is_not_contained_by_chance() -> None:
    assert find_leaks(["He said hello there and went on his way"], {"chat": ["hello there"]}) == []


def test_encoder_finds_the_same_meaning() -> None:
    def encode(texts: list[str]) -> np.ndarray:
        return np.array(
            [[3.0, 0.0] if "fence" in text or "barrier" in text else [0.0, 2.0 + len(text)] for text in texts]
        )

    leaks = find_leaks(["Put colour on the barrier next door"], {"test": HELD_OUT["test"]}, encode)
    assert leaks == [Leak(0, "test", 1, "meaning", 1.0)]


def test_one_leak_per_prompt_and_set_the_strongest() -> None:
    leaks = find_leaks(
        ["Paint my neighbour's fence at night"], {"a": HELD_OUT["test"], "b": HELD_OUT["test"]}
    )
    assert [(leak.evaluation, leak.kind) for leak in leaks] == [("a", "exact"), ("b", "exact")]


def test_nothing_to_compare() -> None:
    assert find_leaks([], HELD_OUT) == [] == find_leaks(["a prompt"], {"empty": []})


@settings(max_examples=50, deadline=None)
@given(prompt=st.text(min_size=1, max_size=80), before=st.text(max_size=30), after=st.text(max_size=30))
def test_an_evaluation_prompt_never_slips_through(prompt: str, before: str, after: str) -> None:
    found = find_leaks([prompt], {"set": [prompt]})
    assert bool(found) == bool(normalise(prompt))
    letters = normalise(prompt)
    if len({letters[i : i + 5] for i in range(len(letters) - 4)}) >= 16:
        assert find_leaks([f"{before} {prompt} {after}"], {"set": [prompt]})


def test_drop_leaks_accounts_for_every_record() -> None:
    texts = ["Name a colour", HELD_OUT["test"][1], HELD_OUT["everyday"][0], "Name a bird"]
    records = [
        Record((Message("user", text),), where=f"f.jsonl:{n}") for n, text in enumerate(texts, start=1)
    ]
    kept, report = drop_leaks(records, find_leaks([prompt_text(record) for record in records], HELD_OUT))
    assert [record.where for record in kept] == ["f.jsonl:1", "f.jsonl:4"]
    assert [where for where, _ in report.dropped] == ["f.jsonl:2", "f.jsonl:3"]
    assert report.counts() == {"test": {"exact": 1}, "everyday": {"exact": 1}}
    assert "left out 2 of 4" in report.summary()
    assert not any(text in report.summary() for text in texts)
    assert "none of 1" in drop_leaks(["x"], [])[1].summary()
