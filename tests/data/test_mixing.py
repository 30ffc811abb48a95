"""The mix: deterministic, nothing lost, labels kept and balanced, no held-out template, every origin told."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from safealign.data.contrast import about_harm, against_people, falsehoods, homonyms, with_intent
from safealign.data.mixing import MixSettings, build_mix, kind_of, mix_counts
from safealign.data.records import BENIGN, MALICIOUS, Message, Record
from safealign.data.styles import FRAMES
from safealign.data.wrapping import Template, generic_templates, split
from safealign.errors import ConfigError

SMALL = MixSettings(per_style=2, wrapped=6, about=3, homonyms=4, intents=3, people=4, balance=True)
TEMPLATES = tuple(Template(f"asset/{i:x}x", f"Template {i} says: {{{{ prompt }}}}") for i in range(40))


def _records(n_benign: int = 12, n_malicious: int = 8) -> list[Record]:
    deeds = {BENIGN: "paint fence", MALICIOUS: "break forbidden toy"}
    return [
        Record(
            messages=(
                Message("user", f"Explain how to {deeds[label]} number {i}"),
                Message("assistant", "Well."),
            ),
            label=label,
            id=f"{label}{i}",
            source="invented",
        )
        for label, n in ((BENIGN, n_benign), (MALICIOUS, n_malicious))
        for i in range(n)
    ]


def test_the_same_seed_gives_the_same_mix_and_another_seed_another() -> None:
    assert build_mix(_records(), SMALL, 1, TEMPLATES) == build_mix(_records(), SMALL, 1, TEMPLATES)
    assert build_mix(_records(), SMALL, 1, TEMPLATES) != build_mix(_records(), SMALL, 2, TEMPLATES)


def test_nothing_is_lost_and_ids_are_unique() -> None:
    plain = Record(messages=(Message("user", "hi"), Message("assistant", "hello")), id="chat")
    records = [*_records(), plain]
    mix = build_mix(records, SMALL, 3, TEMPLATES)
    assert all(record in mix for record in records)
    assert max(Counter(record.id for record in mix).values()) == 1


def test_labels_follow_the_original_and_are_balanced() -> None:
    records = _records()
    labels = {record.id: record.label for record in records}
    mix = build_mix(records, SMALL, 4, TEMPLATES)
    for record in mix:
        origin = (record.id or "").partition("#")[0].partition("@")[0]
        # Contrasts set labels of their own.
        if kind_of(record) not in ("about", "intent", "homonym", "person", "falsehood", "argument"):
            assert record.label == labels[origin]
    count = Counter(record.label for record in mix)
    assert count[BENIGN] == count[MALICIOUS]


def test_a_style_says_nothing_about_the_label() -> None:
    counts = mix_counts(build_mix(_records(), replace(SMALL, balance=False), 5, TEMPLATES))
    for style in FRAMES:
        assert len(set(counts.get(style, {}).values())) <= 1
    assert counts["wrapped"] == {BENIGN: 6, MALICIOUS: 6}
    assert counts["as_is"] == {BENIGN: 12, MALICIOUS: 8}


def test_held_out_templates_are_never_used() -> None:
    settings = replace(SMALL, wrapped=120)
    held = {template.slug for template in split((*TEMPLATES, *generic_templates()))[1]}
    mix = build_mix(_records(), settings, 6, TEMPLATES)
    used = {(record.id or "").partition("#wrapped:")[2] for record in mix if kind_of(record) == "wrapped"}
    assert used and held and not used & held


def test_a_limit_draws_from_every_kind() -> None:
    mix = build_mix(_records(), replace(SMALL, limit=25), 7, TEMPLATES)
    assert Counter(record.label for record in mix) == {BENIGN: 25, MALICIOUS: 25}
    assert {"as_is", "wrapped", "question"} <= set(mix_counts(mix))


def test_answers_stay_only_where_they_still_answer() -> None:
    for record in build_mix(_records(), SMALL, 8, TEMPLATES):
        if kind_of(record) in ("story", "title", "keywords", "about", "intent"):
            assert record.response is None
        if kind_of(record) in ("wrapped", "question"):
            assert record.messages[0].role == "user"


def test_contrasts_swap_the_label() -> None:
    records = _records()
    benign, malicious = records[:12], records[12:]
    assert {record.label for record in about_harm(malicious, 4)} == {BENIGN}
    assert {record.label for record in with_intent(benign, 4)} == {MALICIOUS}
    assert {record.label for record in homonyms(30)} == {BENIGN}
    assert {record.label for record in against_people(30)} == {MALICIOUS}
    assert len(about_harm(malicious, 4)) == len(with_intent(benign, 4)) == 4
    assert all("forbidden toy" in record.request for record in about_harm(malicious, 4))
    assert len({record.request for record in homonyms(200)}) == 200
    assert homonyms(0) == [] and about_harm([], 3) == [] and falsehoods(0) == []
    both = falsehoods(30)
    assert [record.label for record in both] == [MALICIOUS] * 30 + [BENIGN] * 30
    assert len({record.request for record in both}) == len({record.id for record in both}) == 60


def test_one_label_alone_and_no_records_at_all() -> None:
    only = [record for record in _records() if record.label == BENIGN]
    assert {r.label for r in build_mix(only, MixSettings(people=0, intents=0, falsehoods=0), 1)} == {BENIGN}
    assert build_mix([], MixSettings(homonyms=0, people=0, falsehoods=0), 1) == []


def test_bad_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="sonnet"):
        MixSettings(styles=("sonnet",))
    with pytest.raises(ConfigError, match="negative"):
        MixSettings(wrapped=-1)
