"""Wrapping: the request stays whole, labels and answers stay, and held-out templates never meet training."""

from __future__ import annotations

import random

import pytest

from safealign.data.records import Message, Record
from safealign.data.wrapping import (
    PLACEHOLDER,
    Template,
    crop,
    generic_templates,
    is_held_out,
    split,
    usable,
    wrap,
    wrap_both,
    wrap_record,
)
from safealign.errors import DataError

REQUEST = "Tell me {{ about }} \\1 the \\g<0> weather"
LONG = Template("long", "alpha " * 200 + "\n\n{{ prompt }}\n\n" + "omega " * 200)


def _record(i: int, label: str) -> Record:
    messages = (
        Message("system", "Be kind."),
        Message("user", f"{label} request {i}"),
        Message("assistant", "Yes."),
    )
    return Record(messages=messages, label=label, id=f"{label}{i}", source="test")


@pytest.mark.parametrize("template", [*generic_templates(), LONG], ids=lambda t: t.slug)
@pytest.mark.parametrize("max_words", [None, 5, 60])
def test_the_request_stays_whole(template: Template, max_words: int | None) -> None:
    wrapped = wrap(REQUEST, template, max_words, random.Random(3))
    assert REQUEST in wrapped
    assert not PLACEHOLDER.search(wrapped)


def test_a_long_template_is_cut_and_keeps_one_placeholder() -> None:
    for seed in range(20):
        cut = crop(LONG.text, 40, random.Random(seed))
        assert len(PLACEHOLDER.findall(cut)) == 1
        assert len(PLACEHOLDER.sub("", cut).split()) <= 40


def test_every_placeholder_is_filled() -> None:
    assert wrap("x", Template("two", "{{prompt}} and {{  prompt }}")) == "x and x"


def test_a_template_without_a_placeholder_is_refused_or_left_out() -> None:
    with pytest.raises(DataError, match="lost"):
        Template("empty", "no place for it")
    kept = usable({"b": "{% raw %}Do {% endraw %}{{ prompt }}", "a": "nothing"})
    assert [(t.slug, t.text) for t in kept] == [("b", "Do {{ prompt }}")]


def test_the_split_is_disjoint_complete_and_by_family() -> None:
    templates = [Template(f"kind{chr(97 + i)}_{j}", "{{ prompt }}") for i in range(26) for j in range(3)]
    train, held = split(templates)
    assert {t.slug for t in train} | {t.slug for t in held} == {t.slug for t in templates}
    assert not {t.slug[:5] for t in train} & {t.slug[:5] for t in held}
    assert 0 < len(held) < len(train)
    assert is_held_out("x", 1.0) and not is_held_out("x", 0.0)


def test_only_the_newest_user_turn_is_wrapped() -> None:
    record = _record(1, "benign")
    wrapped = wrap_record(record, Template("t", "Now: {{ prompt }}!"))
    assert [turn.content for turn in wrapped.messages] == ["Be kind.", "Now: benign request 1!", "Yes."]
    assert (wrapped.label, wrapped.source, wrapped.id) == ("benign", "test", "benign1#wrapped:t")
    with pytest.raises(DataError, match="user turn"):
        wrap_record(Record(messages=(Message("assistant", "Hi"),)), LONG)


def test_both_labels_meet_the_same_templates() -> None:
    sides = [[_record(i, label) for i in range(5)] for label in ("malicious", "benign")]
    wrapped = wrap_both(sides[0], sides[1], generic_templates(), 40, 60, seed=1)
    assert wrapped == wrap_both(sides[0], sides[1], generic_templates(), 40, 60, seed=1)
    by_label = {
        label: sorted(r.id.split(":")[1] for r in wrapped if r.label == label and r.id)
        for label in ("malicious", "benign")
    }
    assert by_label["malicious"] == by_label["benign"] and len(by_label["benign"]) == 40
    assert wrap_both([], sides[1], generic_templates(), 3, None, 0) == []
