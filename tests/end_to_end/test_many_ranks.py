"""Two processes train one model on the CPU, with and without DeepSpeed, and end with one export and one log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import safealign
from safealign.commands import run_command
from safealign.export import main as export
from safealign.ranks.compiling import missing_compiler

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]
needs_deepspeed = pytest.mark.skipif(missing_compiler() is not None, reason="DeepSpeed needs a C++ compiler on CPUs")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "safealign.train"]
PROMPT = [{"role": "user", "content": "Please fold paper bird number 3 in a nice way"}]


def start(root: Path, arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in the repository, with an environment without leftovers of other jobs."""
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return subprocess.run(
        arguments, cwd=root, env={**env, **environment}, capture_output=True, text=True, timeout=540, check=False
    )


def check_run(done: subprocess.CompletedProcess[str], run_dir: Path) -> list[float]:
    """One export that loads, one set of metrics, one log; returns the losses."""
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.count("exported and verified") == 1
    assert 0.0 <= safealign.load(run_dir / "export").score(PROMPT) <= 1.0
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    log = (run_dir / "log.txt").read_text(encoding="utf-8")
    assert "rank 0 INFO rank 0 of 2" in log and "rank 1 INFO rank 1 of 2" in log and log.count("step 4/4") == 1
    return losses


@pytest.fixture(scope="module")
def ddp(root: Path, overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of a run of two processes without DeepSpeed."""
    run_dir = tmp_path_factory.mktemp("ddp") / "job"
    done = start(root, [sys.executable, *TORCHRUN, *overrides, f"run_dir={run_dir}", "logger=tensorboard"])
    losses = check_run(done, run_dir)
    writers = {path.name.split(".")[-2] for path in run_dir.glob("tensorboard/events.out.*")}
    assert len(writers) == 1  # process ids
    return losses


def test_two_processes_share_one_run(ddp: list[float]) -> None:
    assert len(ddp) == 4


@needs_deepspeed
@pytest.mark.parametrize("stage", ["zero1", "zero3", "zero3_offload"])
def test_deepspeed_gives_the_same_losses(
    root: Path, overrides: list[str], ddp: list[float], tmp_path: Path, stage: str
) -> None:
    more = [f"deepspeed={stage}", f"run_dir={tmp_path / 'job'}", "trainer.keep_last=2"]
    done = start(root, [sys.executable, *TORCHRUN, *overrides, *more])
    assert check_run(done, tmp_path / "job") == pytest.approx(ddp, abs=2e-4)
    check_exports(tmp_path / "job")


def check_exports(run_dir: Path) -> None:
    """One process exports what the ranks wrote half-way, and what rank 0 made of the end: the run's own export."""
    scores = []
    for checkpoint in ("step-2", "step-4"):
        arguments = [f"run={run_dir}", f"checkpoint={checkpoint}", f"run_dir={run_dir / checkpoint}", "offline=true"]
        assert run_command(export, "export", argv=arguments) == 0
        scores.append(safealign.load(run_dir / checkpoint / "export").score(PROMPT))
    assert scores[1] == pytest.approx(safealign.load(run_dir / "export").score(PROMPT), abs=1e-6)
    assert 0.0 < scores[0] < 1.0 and scores[0] != scores[1]


@needs_deepspeed
def test_deepspeeds_launcher_gives_the_same_losses(
    root: Path, overrides: list[str], ddp: list[float], tmp_path: Path
) -> None:
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_accelerators", "2", "--module"]
    arguments = [*launcher, "safealign.train", *overrides, "deepspeed=zero2", f"run_dir={tmp_path / 'job'}"]
    done = start(root, arguments, DS_ACCELERATOR="cpu")
    assert check_run(done, tmp_path / "job") == pytest.approx(ddp, abs=2e-4)


@needs_deepspeed
def test_rounded_weights_leave_a_whole_export(root: Path, overrides: list[str], tmp_path: Path) -> None:
    more = ["deepspeed=zero3", "adapter=none", "trainer.precision=bf16", "trainer.gradient_checkpointing=true"]
    done = start(root, [sys.executable, *TORCHRUN, *overrides, *more, f"run_dir={tmp_path / 'job'}"])
    check_run(done, tmp_path / "job")


def test_ranks_with_other_settings_stop_with_the_key(root: Path, overrides: list[str], tmp_path: Path) -> None:
    ranked = 'exec "$0" -m safealign.train "$@" trainer.learning_rate=1e-$((3 + RANK))'
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no_python"]
    done = start(
        root, [sys.executable, *run, "bash", "-c", ranked, sys.executable, *overrides, f"run_dir={tmp_path / 'job'}"]
    )
    assert done.returncode != 0
    assert "trainer.learning_rate is 0.0001 on rank 1 of 2" in " ".join(done.stderr.split())
    assert not (tmp_path / "job" / "metrics.jsonl").exists()


def test_a_rank_that_waits_in_vain_says_for_whom(root: Path, overrides: list[str], tmp_path: Path) -> None:
    world = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533"}
    arguments = [sys.executable, "-m", "safealign.train", *overrides, f"run_dir={tmp_path / 'job'}"]
    done = start(root, arguments, SAFEALIGN_JOIN_SECONDS="2", **world)
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert "rank 0 of 2" in said and "has not met all the others at 127.0.0.1:29533 within 2 s" in said


def test_a_command_of_one_process_refuses_to_be_started_in_two(root: Path) -> None:
    done = start(root, [sys.executable, "-m", "safealign.export", "run=x"], RANK="0", WORLD_SIZE="2")
    assert done.returncode == 2 and "runs in one process" in " ".join(done.stderr.split())
