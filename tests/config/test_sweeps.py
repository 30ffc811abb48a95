"""A sweep's plan agrees with Hydra's, names are plain and tell jobs apart, records survive and count."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from safealign.config.sweeps import (
    FAILED,
    FINISHED,
    RUNNING,
    JobRecord,
    job_name,
    launcher_problems,
    plan_of,
    read_plan,
    swept_keys,
    varied,
    write_plan,
)
from safealign.errors import ConfigError

SWEEP = ["+recipe=llama_lora", "safety.lambda_cls=0.01,1e-1", "safety.head.layers=[0.5],[0.5,0.9]", "seed=range(0,3)"]


def test_the_jobs_are_hydras_own_in_hydras_order() -> None:
    plan = plan_of(SWEEP)
    assert plan is not None
    theirs = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(SWEEP), None)[0]
    keys = swept_keys(SWEEP)
    assert keys == ["safety.lambda_cls", "safety.head.layers", "seed"]
    assert plan.values == [varied(job, keys) for job in theirs]
    names = [job_name(values, number) for number, values in enumerate(plan.values)]
    assert len(set(names)) == len(theirs) == 12


def test_every_value_is_probed_with_few_jobs() -> None:
    plan = plan_of(SWEEP)
    assert plan is not None
    probes = list(plan.probes)
    assert len(probes) == 1 + 1 + 1 + 2 and set(probes) <= set(plan.jobs)
    assert {item for probe in probes for item in probe} == {item for job in plan.jobs for item in job}


def test_what_only_hydra_can_enumerate_has_no_plan() -> None:
    assert plan_of(["model=glob(*)"]) is None


def test_hydras_own_overrides_are_no_part_of_it() -> None:
    plan = plan_of(["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1,2"])
    assert plan is not None and plan.jobs == [("seed=1",), ("seed=2",)]


def test_run_dir_cannot_be_swept() -> None:
    with pytest.raises(ConfigError, match="give one"):
        plan_of(["run_dir=a,b"])


def test_names() -> None:
    values = {"safety.lambda_cls": "0.1", "safety.placement": "append"}
    assert job_name(values, 0) == "safety.lambda_cls-0.1+safety.placement-append"
    assert job_name({}, 3) == "job-3"
    assert (
        job_name({"model.path": "a/b"}, 0) != job_name({"model.path": "a_b"}, 0) != job_name({"model.path": "a b"}, 0)
    )


@given(st.dictionaries(st.sampled_from(["a.b", "seed"]), st.text(), min_size=1))
def test_any_value_makes_a_name_that_shells_and_hydra_read_without_quotes(values: dict[str, str]) -> None:
    name = job_name(values, 0)
    assert re.fullmatch(r"[\w.+-]+", name) and len(name) < 200
    if name.isascii():
        assert OverridesParser.create().parse_override(f"run=x/{name}/y").value() == f"x/{name}/y"


def test_a_record_counts_attempts_and_says_how_the_last_one_ended(tmp_path: Path) -> None:
    assert JobRecord.read(tmp_path) is None
    first = JobRecord.begin(tmp_path, {"seed": "1"})
    assert JobRecord.read(tmp_path) == JobRecord({"seed": "1"}, RUNNING, "", 1)
    first.end(tmp_path, "out of paper")
    failed = JobRecord.read(tmp_path)
    assert failed is not None and (failed.state, failed.error) == (FAILED, "out of paper")
    JobRecord.begin(tmp_path, {"seed": "1"}).end(tmp_path)
    assert JobRecord.read(tmp_path) == JobRecord({"seed": "1"}, FINISHED, "", 2)
    (tmp_path / "job.json").write_text('{"state": ')
    assert JobRecord.read(tmp_path) is None


def test_a_second_sweep_adds_to_the_plan(tmp_path: Path) -> None:
    write_plan(tmp_path, {"a": {"seed": "1"}})
    write_plan(tmp_path, {"b": {"seed": "2"}})
    assert list(read_plan(tmp_path)) == ["a", "b"]


def test_a_launcher_that_is_not_there_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safealign.config.sweeps.find_spec", lambda module: None)
    (problem,) = launcher_problems(["hydra/launcher=submitit_slurm", "hydra/launcher=basic", "seed=1,2"])
    assert problem.startswith("hydra/launcher=submitit_slurm: is not installed") and "[sweep]" in problem
