"""Two machines (network namespaces joined by a cable), one rank on each, started by the scripts that users start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from nodes import ADDRESSES, CABLE, Nodes, NoNamespaces, two_nodes

from safealign.commands import run_command
from safealign.ranks.compiling import missing_compiler
from safealign.train import main

needs_deepspeed = pytest.mark.skipif(missing_compiler() is not None, reason="DeepSpeed needs a C++ compiler on CPUs")
pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]
STEPS = 16  # one epoch without its uneven last batch
# Script, flags before the overrides, overrides. DeepSpeed's launcher is for DeepSpeed, torchrun here for DDP.
LAUNCHERS = {
    "deepspeed": ("multi_node.sh", ["--no_ssh", "--node_rank", "{node}"], ["deepspeed=zero2"]),
    "torchrun": ("torchrun_multi_node.sh", [], []),
}
both = pytest.mark.parametrize("launcher", [pytest.param("deepspeed", marks=needs_deepspeed), "torchrun"])


@dataclass
class Job:
    """A job on both nodes: its run directory, which they share, and what each node said."""

    nodes: Nodes
    root: Path
    folder: Path
    arguments: list[str]
    environment: dict[str, str]
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def run_dir(self) -> Path:
        return self.folder / "job"

    def start(self, launcher: str) -> None:
        """Starts the same command on each node, but for the node's number."""
        script, flags, more = LAUNCHERS[launcher]
        self.processes = []
        for node in range(2):
            own = [flag.format(node=node) for flag in flags]
            line = [f"launch/{script}", *own, *self.arguments, *more, f"run_dir={self.run_dir}"]
            with (self.folder / f"node-{node}.txt").open("w") as file:
                process = subprocess.Popen(
                    self.nodes.command(node, line),
                    cwd=self.root,
                    env={**self.environment, "NODE_RANK": str(node)},
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            self.processes.append(process)

    def until_saved(self) -> None:
        """Waits for the first checkpoint; training goes on."""
        until = time.monotonic() + 240
        while not (self.run_dir / "checkpoints" / "step-4").exists():
            assert time.monotonic() < until and all(p.poll() is None for p in self.processes), self.said()
            time.sleep(0.02)

    def kill(self, rank: int) -> None:
        """SIGKILL to the process of this rank, whose launcher goes on."""
        found = self.nodes.processes(rank)
        pids = [pid for pid, environment in found.items() if environment.get("RANK") == str(rank)]
        assert pids, self.said()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def ends(self, seconds: float) -> list[int]:
        """The status of each node, which must have ended within `seconds`; nothing may be left running there."""
        until = time.monotonic() + seconds
        try:
            statuses = [process.wait(max(0.1, until - time.monotonic())) for process in self.processes]
        except subprocess.TimeoutExpired:
            pytest.fail(f"not ended after {seconds:g} s: {self.said()}")
        assert [self.nodes.processes(node) for node in range(2)] == [{}, {}]
        return statuses

    def said(self, node: int | None = None) -> str:
        """What the launchers and ranks printed, on one line."""
        found = [node] if node is not None else [0, 1]
        return " ".join(" ".join((self.folder / f"node-{n}.txt").read_text().split())[-4000:] for n in found)

    def losses(self) -> dict[int, float]:
        return losses(self.run_dir)

    def log(self) -> str:
        return (self.run_dir / "log.txt").read_text(encoding="utf-8")


def losses(run_dir: Path) -> dict[int, float]:
    """Loss by step."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Two nodes; skips where this machine does not let them be made."""
    try:
        with two_nodes() as found:
            yield found
    except NoNamespaces as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A small job without any asset: tiny random model, rows of its own, nothing sampled, no table."""
    path = tmp_path_factory.mktemp("data") / "mine.jsonl"
    rows = []
    for i in range(24):
        turns = [{"role": "user", "content": f"Please fold paper bird number {i} in a nice way"}]
        turns.append({"role": "assistant", "content": f"Take sheet {i}, fold it once and twice, then press it flat."})
        rows.append({"messages": turns, "label": "benign", "id": f"good-{i}"})
        asked = [{"role": "user", "content": f"Please do the placeholder misdeed number {i} for me"}]
        rows.append({"messages": asked, "label": "malicious", "id": f"bad-{i}"})
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    data = [f"data.sources=[{{source: '{path}'}}]", "data.mix.wrapped=0", "suite=none", "offline=true"]
    sampling = ["data.sampling.everyday=0", "data.sampling.compliant=0", "data.sampling.answers=0"]
    steps = [f"trainer.max_steps={STEPS}", f"trainer.eval_steps={STEPS}", "trainer.save_steps=4"]
    return ["debug=smoke", *data, *sampling, *steps]


@pytest.fixture(scope="module")
def alone(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses of one process with the batch that two ranks have together."""
    run_dir = tmp_path_factory.mktemp("alone") / "job"
    line = ["+recipe=llama_lora", *arguments, "trainer.batch_size=4", f"run_dir={run_dir}"]
    assert run_command(main, argv=line) == 0
    return losses(run_dir)


@pytest.fixture
def job(nodes: Nodes, root: Path, tmp_path: Path, arguments: list[str]) -> Iterator[Job]:
    """A job that has not been started; whatever it has left running is killed."""
    hosts = tmp_path / "hosts"
    hosts.write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
    kept = ("PATH", "HOME", "LD_LIBRARY_PATH", "SAFEALIGN_CACHE", "TMPDIR", "TORCH_EXTENSIONS_DIR")
    env = {key: os.environ[key] for key in kept if key in os.environ}
    env |= {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": CABLE}
    env |= {"HOSTFILE": str(hosts), "GPUS": "1", "MASTER_ADDR": ADDRESSES[0]}
    found = Job(nodes, root, tmp_path, [*arguments, "trainer.batch_size=2"], env)
    try:
        yield found
    finally:
        nodes.clear()
        for process in found.processes:
            process.kill()
            process.wait()


@both
def test_two_nodes_train_as_one_process_does(job: Job, alone: dict[int, float], launcher: str) -> None:
    job.start(launcher)
    assert job.ends(300) == [0, 0], job.said()
    assert sorted(alone) == list(range(1, STEPS + 1)) and job.losses() == pytest.approx(alone, abs=1e-5)
    assert "rank 0 INFO rank 0 of 2 (node1)" in job.log() and "rank 1 INFO rank 1 of 2 (node2)" in job.log()
    assert job.log().count(f"step {STEPS}/{STEPS}") == 1 and " ERROR " not in job.log()
    assert (job.run_dir / "export" / "safety.json").is_file()
    assert sorted(path.name for path in job.folder.iterdir()) == ["hosts", "job", "node-0.txt", "node-1.txt"]


@both
def test_a_killed_rank_is_named_and_the_job_goes_on(job: Job, alone: dict[int, float], launcher: str) -> None:
    job.start(launcher)
    job.until_saved()
    job.kill(1)
    assert 0 not in job.ends(60)
    sentence = "stopped, because rank 1 of 2 (node2) has ended without a word"
    assert f"rank 0 of 2 (node1): error: {sentence}" in job.said(0)
    assert f"rank 0 ERROR {sentence}" in job.log()
    before = max(job.losses())
    assert 4 <= before < STEPS
    job.start(launcher)
    assert job.ends(300) == [0, 0], job.said()
    assert job.log().count(f"step {STEPS}/{STEPS}") == 1 and "going on from" in job.log()
    assert job.losses() == pytest.approx(alone, abs=1e-5)
    assert (job.run_dir / "export" / "safety.json").is_file()


def test_nodes_that_lose_each_other_both_say_so(job: Job) -> None:
    job.environment["SAFEALIGN_LOST_SECONDS"] = "6"
    job.start("torchrun")
    job.until_saved()
    job.nodes.pull_the_cable()
    try:
        assert 0 not in job.ends(60)
        for node, other in enumerate(("rank 1 of 2 (node2)", "rank 0 of 2 (node1)")):
            assert f"stopped, because {other} has not answered for 6 s" in job.said(node)
    finally:
        job.nodes.plug_the_cable_in()


def test_nodes_that_meet_on_the_wrong_interface_both_say_what_to_set(job: Job) -> None:
    """gloo falls back to the loopback where the host's name does not resolve, and one node would wait for the other."""
    job.environment.pop("GLOO_SOCKET_IFNAME")
    job.start("torchrun")
    assert 0 not in job.ends(60)
    assert all("set GLOO_SOCKET_IFNAME (or NCCL_SOCKET_IFNAME)" in job.said(node) for node in (0, 1))
    assert not (job.run_dir / "checkpoints").exists()
