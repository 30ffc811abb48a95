"""Who is trained on, validated on and calibrated on: never the same request, never an evaluation prompt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safealign.config.composing import compose
from safealign.config.groups import LeakCheckConfig
from safealign.config.roots import TrainConfig
from safealign.data.records import BENIGN, MALICIOUS, Message, Record
from safealign.errors import DataError
from safealign.training.leaking import LeakGuard, remembered
from safealign.training.prepare import arrange
from safealign.training.sources import collect_sources, load_sources
from safealign.training.splitting import distinct, families, hold_out, split, unseen

WORDS = ("a kite", "a paper hat", "a small boat", "a bird of paper", "a box with a lid", "a star")


def _row(i: int, label: str, answer: bool = True, **more: Any) -> dict[str, Any]:
    deed = "fold" if label == BENIGN else "misuse"
    turns = [{"role": "user", "content": f"Please {deed} {WORDS[i % 6]} number {i} for me"}]
    if answer:
        turns.append({"role": "assistant", "content": f"First take sheet {i}, then {deed} it and press it flat."})
    judged = {"response_label": label} if answer else {}
    return {"messages": turns, "label": label, **judged, **more}


def _config(path: Path, *more: str) -> TrainConfig:
    plain = ["data.sampling.everyday=0", "data.sampling.compliant=0", "data.mix.wrapped=0", "data.calibration=[]"]
    return compose(["debug=smoke", f"data.sources=[{{source: '{path}'}}]", "offline=true", *plain, *more])


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(rows: list[dict[str, Any]], name: str = "mine") -> Path:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return [_row(i, label, i % 3 != 2) for i in range(30) for label in (BENIGN, MALICIOUS)]


def _silent(text: str) -> None:
    pass


def _record(text: str, id_: str | None = None, label: str = BENIGN, answer: str | None = "It is done.") -> Record:
    turns = (Message("user", text), *((Message("assistant", answer),) if answer else ()))
    return Record(turns, label, label if answer else None, id=id_)


# ---- families, splits ------------------------------------------------------------------------------------------


def test_twins_versions_and_equal_prompts_are_one_family() -> None:
    records = [
        _record("Fold it", "a#benign"),
        _record("Tear it", "a#harmful", MALICIOUS),
        _record("fold it!", "b"),
        _record("Hold it", "c"),
    ]
    names = families(records)
    assert names[0] == names[1] == names[2] != names[3]


DRAWN = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.booleans()), min_size=1, max_size=40)


@given(drawn=DRAWN, seed=st.integers(0, 9))
def test_no_family_is_torn_by_a_split(drawn: list[tuple[int, int, bool]], seed: int) -> None:
    records = [
        _record(f"text {text}", f"id{pair}#{i}", BENIGN if good else MALICIOUS)
        for i, (pair, text, good) in enumerate(drawn)
    ]
    name_of = dict(zip(map(id, records), families(records), strict=True))
    kept, calibration = hold_out(records, 5)
    train, held = split(kept, 0.3, seed)
    sides = [{name_of[id(r)] for r in side} for side in (calibration, train, held)]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    assert len(train) + len(held) == len(kept)
    assert len(calibration) == len(sides[0]) and all(r.label == BENIGN and r.response for r in calibration)


def test_nothing_can_be_split_and_held_out() -> None:
    assert hold_out([], 10) == ([], []) and split([], 0.2, 0) == ([], [])
    records = [_record("Fold it", "a")]
    assert hold_out(records, 10) == (records, [])


def test_of_equal_prompts_the_answered_one_stays() -> None:
    silent, answered = _record("Fold it", "a", answer=None), _record("Fold it.", "b")
    assert distinct([silent, answered]) == [answered]
    assert unseen([answered, _record("New", "c"), _record("new", "d")], [silent]) == [_record("New", "c")]


# ---- sources ---------------------------------------------------------------------------------------------------


def test_rows_without_an_id_are_named_by_their_place(write, rows) -> None:
    records = load_sources(_config(write(rows)))
    assert len({record.id for record in records}) == len(rows)
    assert len(set(families(records))) == len(rows)


def test_every_source_is_read_and_every_fault_listed(write, rows) -> None:
    first = write([*rows, {"messages": [], "label": BENIGN}], "first")
    second = write([{"messages": [{"role": "user", "content": "x"}], "label": "evil"}], "second")
    config = _config(first)
    for path in (second, Path("gone.jsonl")):
        config.data.sources = [*config.data.sources, *_config(path).data.sources]
    _, problems = collect_sources(config)
    shown = "\n".join(problems)
    assert "first.jsonl:61" in shown and "second.jsonl:1" in shown and "gone.jsonl" in shown
    with pytest.raises(DataError, match="nothing of it was used"):
        load_sources(config)


def test_ids_that_would_glue_unrelated_rows_together_are_refused(write) -> None:
    glued = [_row(i, BENIGN, id=f"ticket#{i}") for i in range(20)]
    _, problems = collect_sources(_config(write(glued)))
    assert any("'ticket'" in problem for problem in problems)


# ---- the whole way ---------------------------------------------------------------------------------------------


def _arranged(write: Any, rows: Any, kit: Any, *more: str, encode: Any = None) -> Any:
    config = _config(write(rows), "data.val_fraction=0.2", *more)
    return arrange(config, load_sources(config), kit.renderer, _silent, encode)


def test_no_request_stands_on_two_sides(write, rows, kit) -> None:
    data = _arranged(write, rows, kit, "data.mix.per_style=4")
    calibration = {record.request for record in data.calibration}
    numbers = [{word for word in request.split() if word.isdigit()} for request in calibration]
    assert calibration and data.validation
    trained = {kit.renderer.tokenizer.decode(example.input_ids) for example in [*data.train, *data.validation]}
    for request in calibration:
        assert not any(request in text for text in trained)
    assert all(numbers)
    ids = [{example.id.split("#")[0].split("@")[0] for example in side} for side in (data.train, data.validation)]
    ruled = {name for side in ids for name in side if name.startswith(("homonym", "person"))}
    assert not (ids[0] & ids[1]) - ruled
    assert {record.id for record in data.calibration}.isdisjoint(ids[0] | ids[1])


def test_baselines_and_head_start_from_the_training_side_alone(write, rows, kit) -> None:
    data = _arranged(write, rows, kit)
    held = {example.id.split("#")[0] for example in data.validation if not example.id.startswith(("homonym", "person"))}
    assert held.isdisjoint({(record.id or "").split("#")[0] for record in data.requests})
    assert held.isdisjoint({example.id.split("#")[0] for example in data.warm})


@pytest.mark.parametrize("missing", [BENIGN, MALICIOUS])
def test_a_label_that_is_missing_is_said_before_training(write, rows, kit, missing: str) -> None:
    some = [row for row in rows if row["label"] != missing]
    none = [f"data.mix.{kind}=0" for kind in ("about", "homonyms", "intents", "people", "falsehoods")]
    with pytest.raises(DataError, match=f"no {missing} request"):
        _arranged(write, some, kit, *none)


def test_thresholds_without_units_are_said_before_training(write, rows, kit) -> None:
    silent = [row | {"messages": row["messages"][:1], "response_label": None} for row in rows]
    with pytest.raises(DataError, match="no unit is left"):
        _arranged(write, silent, kit)


def test_plain_chat_without_labels_trains_the_model_alone(write, rows, kit) -> None:
    chat = [{"messages": row["messages"]} for row in rows if len(row["messages"]) > 1]
    none = [f"data.mix.{kind}=0" for kind in ("about", "homonyms", "intents", "people", "falsehoods")]
    data = _arranged(write, chat, kit, "safety.lambda_cls=0", *none)
    assert data.train and not data.warm and not data.calibration
    assert all(row.label is None for example in data.train for row in example.layout.safety if row.kind == 0)


def test_too_long_a_prompt_is_left_out_and_counted(write, rows, kit) -> None:
    long = _row(99, BENIGN, id="long")
    long["messages"][0]["content"] = "fold it again and again " * 60
    data = _arranged(write, [*rows, long], kit, "safety.calibration.units=1", "data.val_fraction=0")
    assert data.report["too_long"] >= 1
    assert all(example.layout.last_query < 96 for example in [*data.train, *data.warm])


def test_the_same_seed_gives_the_same_data(write, rows, kit) -> None:
    first, second = (_arranged(write, rows, kit).report["digest"] for _ in range(2))
    assert first == second != _arranged(write, rows, kit, "seed=1").report["digest"]


# ---- leaks -----------------------------------------------------------------------------------------------------


def _guard(action: str = "drop", encode: Any = None) -> LeakGuard:
    check = LeakCheckConfig(enabled=True, threshold=0.9, action=action)
    return LeakGuard({"held": ["Please fold the very large paper boat"]}, check, encode)


def test_a_leak_in_an_earlier_turn_is_found() -> None:
    turns = ("user", "Please fold the very large paper boat"), ("assistant", "Done."), ("user", "Thanks, and a hat?")
    talk = Record(tuple(Message(*turn) for turn in turns), BENIGN, id="talk")
    guard = _guard()
    assert guard.clean([talk, _record("Something else", "b")]) == [_record("Something else", "b")]
    assert guard.counts == {"held": {"exact": 1}}


def test_an_error_names_the_row_and_quotes_nothing() -> None:
    with pytest.raises(DataError, match="a: exact match with held, row 1") as raised:
        _guard("error").clean([_record("Please fold the very large paper boat", "a")])
    assert "boat" not in str(raised.value)


def test_what_the_rules_hit_upon_by_chance_is_left_out_and_base_records_pass() -> None:
    base = _record("Something else", "a")
    derived = [_record("Please fold the very large paper boat", "a#polite"), _record("Another thing", "a#casual")]
    wrapped = _record("In a dream: Please fold the very large paper boat. What now?", "a#wrapped:dream")
    guard = _guard()
    assert guard.clean_derived([base, *derived, wrapped], [base]) == [base, derived[1]]


def test_wrapped_requests_are_not_embedded_and_texts_only_once() -> None:
    asked: list[str] = []

    def encode(texts: list[str]) -> torch.Tensor:
        asked.extend(texts)
        return torch.eye(64)[[len(text) % 64 for text in texts]]

    guard = _guard(encode=encode)
    guard.clean_derived([_record("One", "a#casual"), _record("Box: One", "a#wrapped:box")], [])
    guard.clean([_record("One", "a")])
    assert asked.count("One") == 1 and "Box: One" not in asked


def test_remembered_embeddings_keep_their_order() -> None:
    look = remembered(lambda texts: torch.tensor([[float(len(text))] for text in texts]))
    assert look(["aa", "b"]).tolist() == [[2.0], [1.0]]
    assert look(["b", "ccc", "aa"]).tolist() == [[1.0], [3.0], [2.0]]


def test_packing_joins_what_is_trained_on_and_nothing_else(write, rows, kit) -> None:
    path, said = write(rows), []
    plain, packed = (
        arrange(config, load_sources(config), kit.renderer, said.append)
        for config in (_config(path), _config(path, "trainer.packing=300"))
    )
    assert len(packed.train) < len(plain.train) and any(" packed: " in line for line in said)
    assert sorted(i for e in packed.train for i in e.id.split(" + ")) == sorted(e.id for e in plain.train)
    assert packed.validation == plain.validation and packed.warm == plain.warm
    assert packed.warm_answers == plain.warm_answers
