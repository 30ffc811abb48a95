"""The frame of the commands: flags, exit statuses, the run directory, launchers' leftovers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from hydra.errors import ConfigCompositionException

from safealign import commands
from safealign.commands import run_command
from safealign.config import load_option
from safealign.config.composing import to_object
from safealign.config.overrides import options_of
from safealign.config.sweeps import JobRecord, read_plan
from safealign.errors import DataError
from safealign.files import write_text


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """An empty working directory, and what the command's main was called with."""
    monkeypatch.chdir(tmp_path)
    return []


def test_a_plain_run_writes_its_config_and_nothing_else(seen: list[Any], tmp_path: Path) -> None:
    assert run_command(seen.append, argv=["+recipe=llama_lora", "run_dir=here", "--local_rank=0"]) == 0
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert files == ["here", "here/config.yaml"]
    written = yaml.safe_load((tmp_path / "here/config.yaml").read_text())
    assert written["name"] == seen[0].name == "llama_lora"
    assert written["trainer"]["learning_rate"] == seen[0].trainer.learning_rate


def test_only_rank_zero_writes(seen: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run_command(seen.append, argv=["--local-rank", "1"]) == 0
    assert seen and not list(tmp_path.iterdir())


def test_a_mistake_is_one_red_sentence_and_status_2(
    seen: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(seen.append, argv=["trainer.epoch=1"]) == 2
    output = capsys.readouterr()
    assert (
        output.err == "error: trainer.epoch=1: no such key 'trainer.epoch'; did you mean 'trainer.epochs'?\n"
    )
    assert not seen and not output.out


def test_an_error_of_the_command_is_printed_not_raised(
    seen: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def main(config: Any) -> None:
        raise DataError("bad rows [in brackets]", ["a.jsonl:3 empty turn"])

    assert run_command(main, argv=[]) == 2
    assert capsys.readouterr().err == "error: bad rows [in brackets]\n  - a.jsonl:3 empty turn\n"


def test_an_interruption_has_its_own_status(seen: list[Any]) -> None:
    def main(config: Any) -> None:
        raise KeyboardInterrupt

    assert run_command(main, argv=[]) == 130


def test_a_bug_keeps_its_traceback(seen: list[Any]) -> None:
    def main(config: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(main, argv=[])


def test_the_commands_status_is_handed_on(seen: list[Any]) -> None:
    assert run_command(lambda config: 7, argv=[]) == 7


def test_cfg_prints_and_runs_nothing(
    seen: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(seen.append, argv=["--cfg", "job", "--resolve", "debug=smoke", "model=org/name"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["name"], printed["model"]["path"]) == ("smoke", "org/name")
    assert not seen and not list(tmp_path.iterdir())


def test_help_lists_the_groups(seen: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(seen.append, argv=["--help"]) == 0
    text = capsys.readouterr().out
    for group in ("adapter", "recipe"):
        assert f"{group}: {', '.join(options_of(group))}" in text
    assert not seen


def test_a_mistake_beside_a_flag_is_explained_too(
    seen: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(seen.append, argv=["--cfg", "job", "trainer.epoch=1"]) == 2
    assert "did you mean 'trainer.epochs'" in capsys.readouterr().err


def test_a_sweep_runs_each_job_in_a_folder_named_after_what_it_varies(seen: list[Any], tmp_path: Path) -> None:
    assert run_command(seen.append, argv=["-m", "trainer.epochs=1,2", "run_dir=x"]) == 0
    folders = ["x/trainer.epochs-1", "x/trainer.epochs-2"]
    assert [(config.trainer.epochs, config.run_dir) for config in seen] == list(zip((1.0, 2.0), folders, strict=True))
    assert (tmp_path / "x/trainer.epochs-2/config.yaml").is_file()


def test_a_sweep_without_a_run_dir_stays_beside_the_plain_run(seen: list[Any]) -> None:
    assert run_command(seen.append, argv=["-m", "+recipe=llama_lora", "debug=smoke", "name=z", "seed=3,4"]) == 0
    assert [config.run_dir for config in seen] == ["outputs/z-sweep/seed-3", "outputs/z-sweep/seed-4"]
    assert {config.model.name for config in seen} == {"tiny_random"}
    assert run_command(seen.append, "evaluate", argv=["-m", "model=outputs/x/export", "decoding.tau=1,2"]) == 0
    assert [config.run_dir for config in seen[2:]] == [f"outputs/x-sweep/decoding.tau-{tau}" for tau in (1, 2)]


def test_a_sweep_over_exports_evaluates_each(seen: list[Any], tmp_path: Path) -> None:
    argv = ["-m", "model=outputs/a/export,outputs/b/export", "run_dir=x"]
    assert run_command(seen.append, "evaluate", argv=argv) == 0
    assert [config.model.path for config in seen] == ["outputs/a/export", "outputs/b/export"]
    assert [Path(config.run_dir).name for config in seen] == list(read_plan(tmp_path / "x"))
    (tmp_path / "one,two").mkdir()
    assert run_command(seen.append, "evaluate", argv=["model=one,two", "run_dir=y"]) == 0
    assert seen[-1].model.path == "one,two"


def test_a_list_of_one_value_is_a_sweep_of_one_job(seen: list[Any], tmp_path: Path) -> None:
    assert run_command(seen.append, argv=["-m", "seed=choice(3)", "run_dir=x"]) == 0
    assert [config.run_dir for config in seen] == ["x/seed-3"]
    assert read_plan(tmp_path / "x") == {"seed-3": {"seed": "3"}}


@pytest.mark.parametrize("error", [DataError("no data"), ZeroDivisionError("by zero")])
def test_a_job_that_fails_is_named_and_the_others_run(
    seen: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def main(config: Any) -> None:
        if config.seed == 1:
            raise error
        seen.append(config.seed)

    swept: list[Path] = []
    assert run_command(main, argv=["-m", "seed=0,1,2", "run_dir=x"], after_sweep=swept.append) == 2
    assert seen == [0, 2] and swept == [Path("x")]
    records = {name: JobRecord.read(tmp_path / "x" / name) for name in read_plan(tmp_path / "x")}
    states = {name: record.state if record else None for name, record in records.items()}
    assert states == {"seed-0": "finished", "seed-1": "failed", "seed-2": "finished"}
    assert str(error) in records["seed-1"].error and str(error) in capsys.readouterr().err  # type: ignore[union-attr]


def test_what_hydra_refuses_before_the_first_job_is_written_down(
    seen: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise ConfigCompositionException("seed=1 goes with nothing")

    assert run_command(seen.append, argv=["-m", "seed=choice(0)", "run_dir=x"]) == 0
    sweeper = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper.validate_batch_is_legal"
    monkeypatch.setattr(sweeper, refuse)
    assert run_command(seen.append, argv=["-m", "seed=0,1,2", "run_dir=x"]) == 2
    assert len(seen) == 1
    earlier = JobRecord.read(tmp_path / "x/seed-0")
    assert earlier is not None and earlier.state == "finished"
    for name in ("seed-1", "seed-2"):
        record = JobRecord.read(tmp_path / "x" / name)
        assert record is not None and record.state == "failed"
        assert "never started" in record.error and "goes with nothing" in record.error


def test_a_combination_that_is_wrong_fails_alone(seen: list[Any], tmp_path: Path) -> None:
    """Every value by itself goes with the first of the others, so that only its job can find out."""
    argv = ["-m", "+recipe=llama_lora,llama_pretrain", "data.documents.streaming=false,true", "run_dir=x"]
    with mock.patch.object(commands, "to_object", side_effect=_odd) as odd:
        assert run_command(seen.append, argv=argv) == 2
    assert odd.call_count == 4 and len(seen) == 3
    records = [JobRecord.read(tmp_path / "x" / name) for name in read_plan(tmp_path / "x")]
    assert [record.state if record else None for record in records] == ["finished"] * 3 + ["failed"]
    assert records[3] is not None and "a stream needs an end" in records[3].error


def _odd(composed: Any, config_name: str) -> Any:
    config, problems = to_object(composed, config_name)
    wrong = composed.data.documents.streaming and composed.objective.name == "pretraining"
    return config, [*problems, *(["a stream needs an end"] if wrong else [])]


def test_a_sweep_that_is_interrupted_leaves_its_plan(seen: list[Any], tmp_path: Path) -> None:
    def main(config: Any) -> None:
        if config.seed == 1:
            raise KeyboardInterrupt

    assert run_command(main, argv=["-m", "seed=0,1,2", "run_dir=x"]) == 130
    assert list(read_plan(tmp_path / "x")) == ["seed-0", "seed-1", "seed-2"]
    record = JobRecord.read(tmp_path / "x/seed-1")
    assert record is not None and (record.state, record.error) == ("failed", "interrupted")
    assert not (tmp_path / "x/seed-2").exists()


@pytest.mark.parametrize(
    ("item", "hint"),
    [
        ("trainer.epoch=1,2", "did you mean 'trainer.epochs'?"),
        ("safety.placement=append,prepent", "did you mean 'prepend'?"),
        ("safety.lambda_cls=0.1,-1", "safety.lambda_cls=-1.0: must be at least 0"),
        ("model=tiny_random,tiny_randon", "did you mean 'tiny_random'?"),
    ],
)
def test_a_mistake_in_a_sweep_is_explained_before_the_first_job(
    seen: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], item: str, hint: str
) -> None:
    assert run_command(seen.append, argv=["-m", "seed=0,1", item, "run_dir=x"]) == 2
    assert hint in capsys.readouterr().err
    assert not seen and not (tmp_path / "x").exists()


def test_a_job_may_compose_configs_of_its_own(tmp_path: Path, seen: list[Any]) -> None:
    def main(config: Any) -> None:
        seen.append((config.seed, load_option("defense", "undefended").name))

    assert run_command(main, argv=["-m", "seed=0,1", "run_dir=x"]) == 0
    assert seen == [(0, "undefended"), (1, "undefended")]


def test_cfg_of_a_sweep_is_refused(seen: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(seen.append, argv=["-m", "--cfg", "job", "seed=0,1", "run_dir=x"]) == 2
    assert "leave -m" in capsys.readouterr().err
    assert not seen and not (tmp_path / "x").exists()


def test_a_users_own_configs(seen: list[Any], tmp_path: Path) -> None:
    write_text(tmp_path / "mine/trainer/long.yaml", "defaults: [default, _self_]\nepochs: 5\n")
    assert run_command(seen.append, argv=["--config-dir", "mine", "trainer=long"]) == 0
    assert seen[0].trainer.epochs == 5


@pytest.mark.parametrize(
    ("model", "run_dir"), [("outputs/x/export", "outputs/x"), ("org/name", "outputs/evaluate/name")]
)
def test_an_evaluation_goes_to_the_run_it_measures(
    seen: list[Any], tmp_path: Path, model: str, run_dir: str
) -> None:
    assert run_command(seen.append, "evaluate", argv=[f"model={model}"]) == 0
    assert seen[0].run_dir == run_dir
    assert (tmp_path / run_dir / "evaluate.yaml").is_file()


def test_export_keeps_the_runs_config(seen: list[Any], tmp_path: Path) -> None:
    write_text(tmp_path / "x/config.yaml", "name: x\n")
    assert run_command(seen.append, "export", argv=["run=x", "merge=false"]) == 0
    assert (tmp_path / "x/config.yaml").read_text() == "name: x\n"
    assert seen[0].merge is False


def test_a_tolerant_command_gets_the_mistakes(seen: list[Any], tmp_path: Path) -> None:
    def main(config: Any, problems: list[str]) -> int:
        seen.append((config, problems))
        return 2

    assert run_command(main, argv=["trainer.epoch=1", "safety.placement=x"], tolerant=True) == 2
    config, problems = seen[0]
    assert config.name == "smollm2_135m" and len(problems) == 2
    assert not list(tmp_path.iterdir())


def test_a_run_dir_that_cannot_be_written(
    seen: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text(tmp_path / "file", "")
    assert run_command(seen.append, argv=["run_dir=file/x"]) == 2
    assert "run_dir=file/x: cannot be written" in capsys.readouterr().err


def test_a_file_is_whole_or_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_text(tmp_path / "a.json", "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
