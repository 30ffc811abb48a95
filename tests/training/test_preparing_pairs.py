"""Which pairs a run trains on: no evaluation prompt, no calibration unit, and every prompt on one side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safealign.config.composing import compose, load_option
from safealign.config.groups import LeakCheckConfig
from safealign.config.roots import TrainConfig
from safealign.data.records import BENIGN, MALICIOUS, Message, Record
from safealign.errors import DataError
from safealign.training.checks import config_notes, config_problems
from safealign.training.evaluating import _with_changes
from safealign.training.examples import ExampleSettings
from safealign.training.leaking import LeakGuard
from safealign.training.preparing_pairs import Pairs, collect_preferences, prepare_pairs
from safealign.training.stages import of_stage, stages

REFUSAL = "Sorry, I cannot fulfill your request because it may hurt."


def _record(text: str, label: str, id_: str, answer: str | None = "First take it, then fold it.") -> Record:
    turns = (Message("user", text), *((Message("assistant", answer),) if answer else ()))
    return Record(turns, label, label if answer else None, id=id_)


RECORDS = [
    *(_record(f"Please fold hat {i}", BENIGN, f"good-{i}") for i in range(6)),
    *(_record(f"Do misdeed {i}", MALICIOUS, f"bad-{i}") for i in range(6)),
]
HELD = [_record("Please fold boat 1", BENIGN, "held"), _record("Do the held misdeed", MALICIOUS, "held-bad")]


def _config(*more: str) -> TrainConfig:
    return compose(["+recipe=llama_dpo", "debug=smoke", "offline=true", "data.max_length=200", *more])


def _guard(*evaluation: str) -> LeakGuard:
    return LeakGuard({"harmful": list(evaluation)}, LeakCheckConfig(enabled=True, threshold=0.9, action="drop"))


def _prepared(kit: Any, config: TrainConfig, guard: LeakGuard, calibration: tuple[Record, ...] = ()) -> Pairs:
    def benign(records: list[Record]) -> list[Record]:
        return [record for record in records if record.label == BENIGN]

    sides = (benign(RECORDS), RECORDS), (benign(HELD), HELD)
    return prepare_pairs(
        config, kit.renderer, ExampleSettings("Sorry", max_length=200), sides, list(calibration), guard
    )


def _prompts(pairs: list[Any], kit: Any) -> list[str]:
    texts = [kit.renderer.tokenizer.decode(pair.chosen.input_ids[: pair.start]) for pair in pairs]
    return [text.split("user\n")[1].split("<|im_end|>")[0] for text in texts]


def _own(path: Path, *prompts: str) -> str:
    rows = [{"prompt": p, "chosen": "So it goes.", "rejected": REFUSAL, "label": BENIGN} for p in prompts]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return f"data.preferences.sources=[{{source: '{path}'}}]"


def test_pairs_come_from_the_training_side_alone(kit) -> None:
    pairs = _prepared(kit, _config(), _guard())
    prompts = _prompts(pairs.train, kit)
    assert sorted(prompts) == sorted(record.request for record in RECORDS)
    assert set(_prompts(pairs.validation, kit)) <= {record.request for record in HELD}
    assert pairs.report["labels"] == {BENIGN: 6, MALICIOUS: 6}


def test_own_pairs_leave_out_evaluation_prompts_and_calibration_units(kit, tmp_path: Path) -> None:
    own = _own(tmp_path / "mine.jsonl", "How do I cook an egg?", "A secret test prompt of ours", "Peel an apple now")
    calibration = (_record("Peel an apple now", BENIGN, "unit"),)
    guard = _guard("A secret test prompt of ours")
    pairs = _prepared(kit, _config(own, "data.val_fraction=0"), guard, calibration)
    prompts = _prompts(pairs.train, kit)
    assert "How do I cook an egg?" in prompts
    assert not {"A secret test prompt of ours", "Peel an apple now"} & set(prompts)
    assert sum(guard.counts["harmful"].values()) == 1


def test_own_pairs_stay_on_the_side_of_their_prompt(kit, tmp_path: Path) -> None:
    """Several pairs may share one prompt; all of them stay."""
    own = _own(tmp_path / "mine.jsonl", "Please fold boat 1", "Please fold hat 2", "Please fold boat 1")
    pairs = _prepared(kit, _config(own, "data.preferences.answers=0", "data.val_fraction=0"), _guard())
    assert _prompts(pairs.validation, kit) == ["Please fold boat 1"] * 2
    assert "Please fold hat 2" in _prompts(pairs.train, kit)


def test_two_sources_may_use_the_same_ids(kit, tmp_path: Path) -> None:
    rows = [{"id": "a", "prompt": f"Cook {n}", "chosen": "So.", "rejected": REFUSAL, "label": BENIGN} for n in (1, 2)]
    paths = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for path, row in zip(paths, rows, strict=True):
        path.write_text(json.dumps(row), encoding="utf-8")
    own = ", ".join(f"{{source: '{path}'}}" for path in paths)
    config = _config(f"data.preferences.sources=[{own}]", "data.val_fraction=0")
    assert {"Cook 1", "Cook 2"} <= set(_prompts(_prepared(kit, config, _guard()).train, kit))


def test_no_pair_and_faulty_pairs_are_errors(kit, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no preference pair is left"):
        _prepared(kit, _config("data.preferences={refusals: 0, answers: 0}"), _guard())
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "x"}', encoding="utf-8")
    with pytest.raises(DataError) as error:
        _prepared(kit, _config(f"data.preferences.sources=[{{source: '{path}'}}]"), _guard())
    assert any(line.startswith("mine.jsonl:1: chosen is missing") for line in error.value.problems)


# ---- stages and settings ---------------------------------------------------------------------------------------


def test_stages_and_their_settings() -> None:
    both = compose(["+recipe=llama_sft_dpo", "trainer.epochs=3", "objective.dpo.batch_size=2"])
    assert stages(both) == ("sft", "dpo") and stages(compose(["+recipe=llama_dpo"])) == ("dpo",)
    assert of_stage(both, "sft") == both
    own = of_stage(both, "dpo").trainer
    assert (own.batch_size, own.learning_rate, own.epochs) == (2, both.objective.dpo.learning_rate, 3)
    assert both.trainer.learning_rate != own.learning_rate


def test_the_plain_baseline_of_a_preference_run_is_fine_tuning() -> None:
    changed = _with_changes(compose(["+recipe=llama_sft_dpo"]), load_option("defense", "plain_sft").training)
    assert stages(changed) == ("sft",)


REFUSED = [
    (["loss_type=[sft]"], "names no preference loss"),
    (["loss_type=[sigmoid,sigmoid]"], "names one twice"),
    (["loss_type=[sigmoid,hinge]", "loss_weights=[1]"], "1 weights for 2 loss types"),
    (["loss_weights=[-1]"], "must be above 0"),
    (["loss_type=[exo_pair]"], "takes the logarithm of label_smoothing"),
    (["loss_type=[robust]", "label_smoothing=0.5"], "divides by 1 − 2·label_smoothing"),
]


@pytest.mark.parametrize(("settings", "reason"), REFUSED)
def test_losses_that_cannot_work_are_refused_with_the_reason(settings: list[str], reason: str) -> None:
    config = compose(["+recipe=llama_dpo", *(f"objective.dpo.{item}" for item in settings)])
    (problem,) = config_problems(config)
    assert problem.startswith("objective.dpo.") and reason in problem


def test_a_smoothing_that_nothing_reads_is_noted() -> None:
    used, unused = (
        compose(["+recipe=llama_dpo", "objective.dpo.label_smoothing=0.1", f"objective.dpo.loss_type=[{loss}]"])
        for loss in ("robust", "sigmoid")
    )
    assert not [note for note in config_notes(used) if "label_smoothing" in note]
    assert [note for note in config_notes(unused) if "label_smoothing" in note]


def test_a_pair_that_is_alike_once_it_is_cut_is_left_out(kit, tmp_path: Path) -> None:
    long = "So it goes on and on and on. " * 20
    rows = [
        {"prompt": "Peel an apple", "chosen": f"{long} The end.", "rejected": f"{long} Another end.", "label": BENIGN},
        {"prompt": "Peel a pear", "chosen": "Gladly.", "rejected": f"{long} Another end.", "label": BENIGN},
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    own = f"data.preferences.sources=[{{source: '{tmp_path / 'mine.jsonl'}'}}]"
    pairs = _prepared(kit, _config(own, "data.val_fraction=0"), _guard())
    assert "Peel a pear" in _prompts(pairs.train, kit) and "Peel an apple" not in _prompts(pairs.train, kit)
    assert all(pair.chosen.input_ids != pair.rejected.input_ids for pair in pairs.train)
    assert pairs.report["too_long"] == 1


def test_no_pair_takes_the_name_of_another(kit, tmp_path: Path) -> None:
    """Two sources with the same ids, one of which looks as if a number had been given to it already."""
    for name, ids in (("a", ("x", "x~1")), ("b", ("x", "x~1", "y"))):
        rows = [
            {"prompt": f"Peel {name} {id_}", "chosen": "So.", "rejected": REFUSAL, "label": BENIGN, "id": id_}
            for id_ in ids
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    sources = ", ".join(f"{{source: '{tmp_path / name}.jsonl'}}" for name in ("a", "b"))
    found, problems = collect_preferences(_config(f"data.preferences.sources=[{sources}]"))
    assert not problems
    assert [preference.id for preference in found] == ["x", "x~1", "x~2", "x~1~1", "y"]
