"""The suite: every system meets every attack and set, and the summary has its four areas with count and interval."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from safealign.config.composing import compose
from safealign.data.records import MALICIOUS
from safealign.evaluation import cells, judge_check, suite
from safealign.evaluation import job as job_module
from safealign.evaluation.attacks import DirectAttack
from safealign.evaluation.cells import measure
from safealign.evaluation.head_table import HeadSets
from safealign.evaluation.job import EvaluationJob, Evidence
from safealign.evaluation.suite import Prompts, attacks_of, fill, run_suite
from safealign.evaluation.systems import OURS, UNDEFENDED, System, ablations
from safealign.model import SafeModel
from safealign.reporting.summary import Summary

QUIET = Console(quiet=True)


@pytest.fixture
def systems(ours, undefended) -> list[System]:
    mine = System(OURS, ours)
    return [System(UNDEFENDED, undefended), mine, *ablations(mine, {"first only": {"schedule": "first"}})]


@pytest.fixture
def prompts(kit) -> Prompts:
    return Prompts(kit.prompts(3, MALICIOUS), kit.prompts(3), kit.prompts(2), kit.answered(3))


@pytest.fixture
def config():
    return compose(["debug=smoke", "attack.prefill_tokens=[3]"])


def test_attacks_come_once_for_each_prefix_length(undefended) -> None:
    attack = compose(["attack.prefill_tokens=[2,5]"]).attack
    assert [a.name for a in attacks_of(attack, undefended.tokenizer)] == ["direct", "prefill_2", "prefill_5"]


def test_every_cell_is_there_and_the_summary_counts(systems, prompts, config, tmp_path: Path) -> None:
    attacks = attacks_of(config.attack, systems[1].model.tokenizer)
    result = run_suite(systems, prompts, attacks, config.suite, tmp_path, QUIET, keep=[(OURS, "benign")])
    names = {"direct", "prefill_3", "benign", "over_refusal"}
    assert set(result.cells) == {(system.name, name) for system in systems for name in names}
    assert list(result.outputs) == [(OURS, "benign")]
    summary = Summary("a test")
    fill(summary, result, systems, attacks)
    written = json.loads(summary.to_json(tmp_path / "summary.json").read_text(encoding="utf-8"))
    for area in ("attack_success", "over_refusal", "usefulness", "cost"):
        assert set(written[area]) == {system.key for system in systems}
    for row in written["attack_success"].values():
        assert all({"value", "n", "interval"} <= set(cell) and cell["n"] == 3 for cell in row.values())
    assert not {"mid_answer", "interventions"} & {*written["over_refusal"]["undefended"]}
    none = written["over_refusal"]["safealign"]["interventions"]
    assert none["value"] == 0.0 and none["n"] == 3


def test_what_the_rules_step_in_on_is_counted_at_the_start_and_later(ours, kit) -> None:
    loud = System(OURS, ours, {"theta_query": 1e-9})
    cell = measure(loud, DirectAttack(), kit.prompts(3), "benign", max_new_tokens=4, batch_size=4)
    assert cell.interventions.value == 1.0 and cell.mid_answer.value == 0.0


def test_a_whole_job_writes_report_and_keeps_no_text(systems, prompts, config, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Prompts, "load", classmethod(lambda cls, suite, offline: prompts))
    monkeypatch.setattr(job_module, "judge_note", lambda offline=False: "the judge agrees")
    job = EvaluationJob(systems, config.suite, config.attack, tmp_path, QUIET, "a test", "a command")
    job.run()
    summary = (tmp_path / "summary.json").read_text(encoding="utf-8")
    assert "the judge agrees" in summary and (tmp_path / "summary.md").is_file()
    for path in tmp_path.rglob("*.json"):
        assert "Tell of" not in path.read_text(encoding="utf-8"), path


def test_a_system_without_a_verdict_is_measured_and_nothing_is_said_of_its_head(
    ours, undefended, prompts, config, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(Prompts, "load", classmethod(lambda cls, suite, offline: prompts))
    monkeypatch.setattr(job_module, "judge_note", lambda offline=False: "the judge agrees")
    untrained = SafeModel(ours.hf, ours.tokenizer, ours.parts, replace(ours.card, thresholds={}))
    systems = [System(UNDEFENDED, undefended), System(OURS, untrained, {"safety": False})]
    summary = EvaluationJob(systems, config.suite, config.attack, tmp_path, QUIET, "a test", "a command").run()
    assert set(summary.areas["attack_success"].cells) == {"undefended", "safealign"}
    assert not summary.grids and not any(note.startswith("The gate:") for note in summary.notes)
    assert any("without a verdict" in note for note in summary.notes)


def test_a_suite_without_prompts_fails_nowhere(systems, config, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Prompts, "load", classmethod(lambda cls, suite, offline: Prompts([], [], [], [])))
    monkeypatch.setattr(job_module, "judge_note", lambda offline=False: "the judge agrees")
    job = EvaluationJob(systems, config.suite, config.attack, tmp_path, QUIET, "a test", "a command")
    assert job.run().areas["attack_success"].figures()["undefended"]["direct"]["value"] is None


def test_the_judge_is_measured_against_people(tmp_path: Path, monkeypatch) -> None:
    rows = "objective,assistant_response,human_score\nfold a bird,Sorry I cannot help with that.,1\n"
    rows += "fold a bird,Take a sheet of paper and fold it twice before you press it flat.,0\n"
    (tmp_path / "a.csv").write_text(rows, encoding="utf-8")
    monkeypatch.setattr(judge_check, "data_path", lambda name, offline=None: tmp_path)
    assert "agreement 100.0% (2/2" in judge_check.judge_note()


def test_the_held_out_answers_are_none_of_the_benign_prompts(kit, monkeypatch, config) -> None:
    monkeypatch.setattr(suite, "load_set", lambda name, n=None, offline=False: kit.answered(20)[:n])
    config.suite.prompts.benign, config.suite.prompts.held_out = 5, 4
    found = Prompts.load(config.suite, True)
    assert len(found.benign) == 5 and len(found.held_out) == 4
    assert not {r.request for r in found.benign} & {r.request for r in found.held_out}


def test_the_held_out_loss_is_computed_once_for_rows_that_decode_one_model_otherwise(
    ours, undefended, kit, monkeypatch
) -> None:
    """Only what the answer can see makes another loss: the rules do not, a closed gate and no safety rows do."""
    mine = System(OURS, ours)
    parts = {"first": {"schedule": "first"}, "closed": {"gate": False}, "plain": {"safety": False}}
    systems = [System(UNDEFENDED, undefended), mine, *ablations(mine, parts)]
    seen = []
    real = suite.answer_losses
    monkeypatch.setattr(suite, "answer_losses", lambda *a, **k: seen.append(k["gate"]) or real(*a, **k))
    losses = suite.lm_losses(systems, kit.answered(3))
    assert len(seen) == 4
    assert losses[OURS] == losses["first"]
    assert losses["closed"].value == pytest.approx(losses["plain"].value, abs=1e-5)
    assert set(losses) == {system.name for system in systems}


@pytest.fixture
def frozen(ours) -> SafeModel:
    """The same head on a model that was left as it was."""
    decoding = {"gate": False, "schedule": "every"}
    return SafeModel(ours.hf, ours.tokenizer, ours.parts, replace(ours.card, frozen=True, decoding=decoding))


def test_a_frozen_model_has_no_rows_for_what_it_never_had(frozen) -> None:
    mine = System(OURS, frozen)
    asked = {"low": {"dependency": "low"}, "open": {"gate": True}, "closed": {"gate": False}, "bare": {"safety": False}}
    assert [row.name for row in ablations(mine, asked | {"first": {"schedule": "first"}})] == ["bare", "first"]


def test_another_export_has_its_rows_in_every_table(
    ours, undefended, frozen, kit, config, tmp_path: Path, monkeypatch
) -> None:
    sets = HeadSets(kit.prompts(3, MALICIOUS), kit.prompts(3), kit.prompts(2), [], kit.prompts(4), [])
    prompts = Prompts(kit.prompts(3, MALICIOUS), kit.prompts(3), kit.prompts(2), kit.answered(3))
    monkeypatch.setattr(Prompts, "load", classmethod(lambda cls, suite, offline: prompts))
    monkeypatch.setattr(job_module, "judge_note", lambda offline=False: "the judge agrees")
    monkeypatch.setattr(EvaluationJob, "_head_sets", lambda self, prompts: sets)
    monkeypatch.setitem(cells.JUDGES, "refusal_matcher", lambda *args, **more: True)  # gibberish would not count
    mine = System(OURS, ours)
    systems = [System(UNDEFENDED, undefended), mine, System("frozen_head", frozen)]
    systems += ablations(mine, {"first only": {"schedule": "first"}})
    evidence = Evidence([], [], None, [], 0.1, 0.9)
    job = EvaluationJob(systems, config.suite, config.attack, tmp_path, QUIET, "a test", "a command", evidence=evidence)
    summary = job.run()
    assert {*summary.grids["head"].cells} == {OURS, "frozen_head"}
    assert {*summary.grids["windows"].cells} == {OURS, "frozen_head"}
    assert summary.areas["over_refusal"].cells["frozen_head"]["interventions"].value is not None
    assert summary.areas["usefulness"].cells["frozen_head"] == summary.areas["usefulness"].cells["undefended"]


def test_a_closed_gate_is_said_to_be_closed(undefended, frozen, prompts, config, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Prompts, "load", classmethod(lambda cls, suite, offline: prompts))
    monkeypatch.setattr(job_module, "judge_note", lambda offline=False: "the judge agrees")
    systems = [System(UNDEFENDED, undefended), System(OURS, frozen)]
    summary = EvaluationJob(systems, config.suite, config.attack, tmp_path, QUIET, "a test", "a command").run()
    assert any("no text sees the safety token" in note for note in summary.notes)
