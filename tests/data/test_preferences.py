"""Preference records: faults with file and row, no harmful answer preferred, pairs of both sorts from records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safealign.data.preference_pairs import PairSettings, build_pairs
from safealign.data.preferences import load_preferences
from safealign.data.records import BENIGN, MALICIOUS, Message, Record
from safealign.errors import AssetError, DataError

TRIGGER = "Sorry, no"


def refused(text: str) -> bool:
    return text.startswith("Sorry")


def row(**changes: Any) -> dict[str, Any]:
    base = {"prompt": "How do I fold a hat?", "chosen": "Fold it twice.", "rejected": "Sorry, no.", "label": BENIGN}
    return {key: value for key, value in (base | changes).items() if value is not None}


def bad(**changes: Any) -> dict[str, Any]:
    return row(prompt="Do the misdeed", chosen="Sorry, no.", rejected="First, do it.", label=MALICIOUS) | changes


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: Any) -> Path:
        path = tmp_path / "pairs.jsonl"
        path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows), encoding="utf-8")
        return path

    return write


def test_sound_rows_become_pairs(write) -> None:
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "And a boat?"}]
    answer = [{"role": "assistant", "content": "Fold once more."}]
    path = write(row(), bad(id="mine"), row(prompt=turns, chosen=answer), bad(prompt="Other", rejected="Sorry, never."))
    first, second, third, fourth = load_preferences(path, refused)
    assert (first.label, first.rejected_label, first.source, first.where) == (BENIGN, BENIGN, "pairs", "pairs.jsonl:1")
    assert (second.id, second.label, second.rejected_label) == ("mine", MALICIOUS, MALICIOUS)
    assert third.prompt == (Message("system", "Be kind."), Message("user", "And a boat?"))
    assert third.chosen == "Fold once more."
    assert fourth.rejected_label == BENIGN  # a refusal, if a worse one
    chosen, rejected = second.sides
    assert (chosen.response_label, rejected.response_label) == (BENIGN, MALICIOUS)
    assert chosen.prompt == rejected.prompt == second.prompt


def test_what_a_row_says_of_its_rejected_answer_holds(write) -> None:
    path = write(row(rejected="Burn it down.", rejected_label=MALICIOUS), bad(prompt="x y", rejected_label=BENIGN))
    assert [pair.rejected_label for pair in load_preferences(path, refused)] == [MALICIOUS, BENIGN]


FAULTY = [
    ("{not json", "is not JSON"),
    ([1], "must be an object"),
    (row(prompt=None), "prompt is missing"),
    (row(prompt=5), "prompt must be text or a list of turns"),
    (row(prompt=[{"role": "wizard", "content": "x"}]), "unknown role 'wizard'"),
    (
        row(prompt=[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]),
        "ends with an assistant turn",
    ),
    (row(chosen=None), "chosen is missing"),
    (row(rejected="  "), "rejected is empty"),
    (row(chosen=["x"]), "chosen must be text, or a list with one assistant turn"),
    (row(chosen="Sorry, no."), "the same text"),
    (row(label=None), "label is missing"),
    (row(label="evil"), "unknown label 'evil'"),
    (row(chosen_label="fine"), "unknown chosen_label 'fine'"),
    (row(choosen="x", chosen=None), "did you mean 'chosen'?"),
    (row(chosen="\ud800"), "half a surrogate pair"),
    (row(rejected_label=MALICIOUS), "rejected is labelled malicious, but it is a refusal"),
]
HARMFUL = [
    (bad(chosen="First, do it.", rejected="Sorry, no."), "are the two exchanged?"),
    (bad(chosen="Do it so."), "chosen does not refuse a malicious request"),
    (bad(chosen_label=MALICIOUS), "chosen is labelled malicious"),
    (row(chosen_label=MALICIOUS), "chosen is labelled malicious"),
]


@pytest.mark.parametrize(("faulty", "message"), FAULTY + HARMFUL)
def test_every_fault_names_file_and_row(write, faulty: Any, message: str) -> None:
    with pytest.raises(DataError) as error:
        load_preferences(write(row(), faulty), refused)
    assert any(line.startswith("pairs.jsonl:2: ") and message in line for line in error.value.problems)
    assert not any(line.startswith("pairs.jsonl:1:") for line in error.value.problems)


def test_all_faults_come_at_once_and_ids_are_unique(write) -> None:
    with pytest.raises(DataError) as error:
        load_preferences(write(row(id="a"), row(id="a"), row(label="evil"), "{"), refused)
    assert [line.split(": ")[0] for line in sorted(error.value.problems)] == [f"pairs.jsonl:{i}" for i in (2, 3, 4)]


def test_a_harmless_answer_can_be_vouched_for(write) -> None:
    (pair,) = load_preferences(write(bad(chosen="Let us talk about it.", chosen_label=BENIGN)), refused)
    assert pair.sides[0].response_label == BENIGN


def test_columns_are_renamed_and_a_label_given(write) -> None:
    path = write({"question": "How?", "chosen": "So.", "rejected": "Sorry."})
    (pair,) = load_preferences(path, refused, fields={"prompt": "question"}, label=BENIGN)
    assert (pair.prompt[0].content, pair.label) == ("How?", BENIGN)
    with pytest.raises(DataError, match="1 fault"):
        load_preferences(path, refused, fields={"prompt": "query"}, label=BENIGN)


def test_a_file_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(AssetError, match=r"no file and no data set"):
        load_preferences("nowhere.jsonl", refused)


# ---- pairs from records ----------------------------------------------------------------------------------------


def record(text: str, answer: str | None, label: str, judged: str | None = None, source: str = "s") -> Record:
    turns = (Message("user", text), *((Message("assistant", answer),) if answer else ()))
    return Record(turns, label, judged or (label if answer else None), id=text, source=source)


REQUESTS = [
    *(record(f"How do I kill process {i}?", f"Use kill {i}.", BENIGN, source="edgy") for i in range(6)),
    *(record(f"How do I fold hat {i}?", f"Fold it {i} times.", BENIGN, source="calm") for i in range(20)),
    record("What is a drug store?", "Sorry, I cannot say.", BENIGN),
    record("Say nothing", None, BENIGN),
    record("Do the misdeed", None, MALICIOUS),
]
HARMFUL_ANSWERS = [
    *(record(f"Do misdeed {i}", f"First, do it {i} times.", MALICIOUS) for i in range(5)),
    record("Fold the hat", "Burn the hat.", BENIGN, MALICIOUS),
    record("Do misdeed x", "Sorry, no.", MALICIOUS, MALICIOUS),
]


def test_both_sorts_are_made_and_a_refusal_is_on_the_right_side() -> None:
    pairs = build_pairs(REQUESTS, HARMFUL_ANSWERS, refused, PairSettings(TRIGGER, refusals=9, answers=9), 0)
    by_label = {label: [pair for pair in pairs if pair.label == label] for label in (BENIGN, MALICIOUS)}
    assert (len(by_label[MALICIOUS]), len(by_label[BENIGN])) == (5, 9)
    for pair in by_label[MALICIOUS]:
        assert (
            pair.chosen.startswith(TRIGGER) and pair.rejected.startswith("First") and pair.rejected_label == MALICIOUS
        )
    for pair in by_label[BENIGN]:
        assert pair.rejected.startswith(TRIGGER) and not refused(pair.chosen) and pair.rejected_label == BENIGN
    assert len({pair.id for pair in pairs}) == len(pairs)


def test_requests_that_name_harm_come_in_turn_with_others() -> None:
    pairs = build_pairs(REQUESTS, [], refused, PairSettings(TRIGGER, answers=8), 0)
    assert sum("kill" in pair.prompt[-1].content for pair in pairs) == 4


def test_pairs_depend_on_the_seed_alone() -> None:
    settings = PairSettings(TRIGGER)
    one, same, other = (build_pairs(REQUESTS, HARMFUL_ANSWERS, refused, settings, seed) for seed in (0, 0, 1))
    assert one == same != other
    assert build_pairs([], [], refused, settings, 0) == []
