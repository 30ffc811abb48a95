"""What launchers say, and one sentence for each thing they can get wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from safealign.errors import RankError
from safealign.ranks import adopt_slurm, read_world, world_size
from safealign.ranks.hostfile import main as hostfile
from safealign.ranks.hostfile import read_hostfile

GOOD = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}


def test_a_launchers_numbers_are_read() -> None:
    world = read_world(GOOD)
    assert (world.rank, world.local_rank, world.size, world.port) == (1, 1, 2, 29511)
    assert world.name.startswith("rank 1 of 2 (") and world_size(GOOD) == 2


def test_without_a_launcher_there_is_one_process() -> None:
    assert read_world({}) == read_world({"WORLD_SIZE": "1"}) and read_world({}).size == world_size({}) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"RANK": "2"}, "RANK=2 does not fit WORLD_SIZE=2"),
        ({"RANK": "one"}, "RANK=one is no whole number"),
        ({"WORLD_SIZE": "0"}, "at least one process"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE=many is no whole number"),
        ({"LOCAL_RANK": "7"}, "LOCAL_RANK=7 does not fit"),
        ({"RANK": ""}, "RANK is not set"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"MASTER_ADDR": "no.such.host.invalid"}, "cannot resolve the name"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT=70000"),
    ],
)
def test_a_wrong_number_is_one_sentence(change: dict[str, str], words: str) -> None:
    with pytest.raises(RankError, match=words) as caught:
        read_world({**GOOD, **change})
    assert "\n" not in str(caught.value)


def test_a_step_of_srun_is_a_world_but_the_batch_script_around_it_is_not() -> None:
    step = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "MASTER_ADDR": "127.0.0.1"}
    adopt_slurm(step)
    assert (read_world(step).rank, read_world(step).local_rank, read_world(step).size) == (3, 1, 4)
    batch = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    adopt_slurm(batch)
    assert read_world(batch).size == 1


def test_another_launcher_inside_srun_has_the_last_word() -> None:
    inside = {**GOOD, "SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1"}
    adopt_slurm(inside)
    assert read_world(inside).rank == 1


def test_hosts_are_read_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "hosts"
    path.write_text("# ours\nb slots=8\n\na slots=4  # the old one\n")
    assert list(read_hostfile(path).items()) == [("b", 8), ("a", 4)]
    assert hostfile([str(path), "1"]) == 0 and capsys.readouterr().out == "b\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [("a slots=8\nb 8\n", "hosts:2: 'b 8'"), ("a slots=2\na slots=2\n", "named twice"), ("# none\n", "names no host")],
)
def test_a_bad_hostfile_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    path = tmp_path / "hosts"
    path.write_text(text)
    assert hostfile([str(path)]) == 2
    shown = capsys.readouterr()
    assert words in shown.err and shown.err.count("\n") == 1 and not shown.out


def test_a_node_beyond_the_hostfile_and_a_missing_file_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hosts"
    path.write_text("a slots=2\nb slots=2\n")
    assert hostfile([str(path), "2"]) == 2 and "from 0 to 1" in capsys.readouterr().err
    assert hostfile([str(tmp_path / "none")]) == 2 and "cannot be read" in capsys.readouterr().err
