"""The scripts of launch/: their syntax, the exact command each runs, and, where a CPU can, the real thing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from safealign.ranks.compiling import missing_compiler

SCRIPTS = ["single_gpu.sh", "multi_gpu.sh", "multi_node.sh", "torchrun_multi_node.sh", "slurm.sbatch"]
STUB = "#!/usr/bin/env bash\nprintf '%s\\n' \"$(basename \"$0\")\" \"$@\"\n"


def run(
    root: Path, script: str, arguments: list[str], **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a script of launch/ with this environment beside what it needs."""
    kept = ("PATH", "HOME", "LD_LIBRARY_PATH", "SAFEALIGN_CACHE", "TMPDIR")
    env = {key: os.environ[key] for key in kept if key in os.environ}
    env |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    line = [str(root / "launch" / script), *arguments]
    return subprocess.run(
        line, env={**env, **environment}, cwd=root, capture_output=True, text=True, timeout=540, check=False
    )


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    """A folder with a python, a deepspeed, an srun and a scontrol that print what they are given.

    The python runs the check of the hostfile for real.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    real = f'#!/usr/bin/env bash\nif [ "$2" = safealign.ranks.hostfile ]; then exec {sys.executable} "$@"; fi\n'
    texts = {"python": real + STUB.split("\n", 1)[1], "deepspeed": STUB, "srun": STUB}
    texts["scontrol"] = "#!/usr/bin/env bash\nprintf 'node7\\nnode8\\n'\n"
    for name, text in texts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_sound_and_can_be_started(root: Path, script: str) -> None:
    path = root / "launch" / script
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
    assert os.access(path, os.X_OK)
    assert script in (root / "launch" / "README.md").read_text(encoding="utf-8")
    checker = shutil.which("shellcheck")
    if checker is not None:
        found = subprocess.run([checker, str(path)], capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout


def test_one_gpu(root: Path, stubs: Path) -> None:
    done = run(root, "single_gpu.sh", ["a=1"], PYTHON=str(stubs / "python"))
    assert done.stdout.split("\n")[:5] == ["python", "-m", "safealign.train", "+recipe=llama_lora", "a=1"]


def test_many_gpus(root: Path, stubs: Path) -> None:
    done = run(root, "multi_gpu.sh", ["a=b c"], PYTHON=str(stubs / "python"), GPUS="4", RECIPE="mine")
    expected = "python -m torch.distributed.run --standalone --nproc_per_node 4 -m safealign.train +recipe=mine"
    assert done.stdout.split("\n")[:-1] == [*expected.split(), "a=b c"]


def test_without_a_gpu_the_script_says_what_to_set(root: Path, stubs: Path) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("there are GPUs here")
    done = run(root, "multi_gpu.sh", [], PYTHON=str(stubs / "python"))
    assert done.returncode == 2 and "set GPUS" in done.stderr and not done.stdout


def test_many_nodes_with_ssh_and_without(root: Path, stubs: Path, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("node7 slots=8\nnode8 slots=8\n")
    env = {"PYTHON": str(stubs / "python"), "HOSTFILE": str(hosts)}
    start = f"deepspeed --hostfile {hosts} --master_addr node7 --master_port 29500"
    job = "--module safealign.train +recipe=llama_lora deepspeed=zero3"
    done = run(root, "multi_node.sh", ["deepspeed=zero3"], **env)
    assert done.stdout.split() == f"{start} {job}".split()
    done = run(root, "multi_node.sh", ["--no_ssh", "--node_rank", "1", "deepspeed=zero3"], **env)
    assert done.stdout.split() == f"{start} --no_ssh --node_rank 1 {job}".split()


def test_a_wrong_hostfile_or_node_stops_before_anything_starts(root: Path, stubs: Path, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("node7 8\n")
    env = {"PYTHON": str(stubs / "python"), "HOSTFILE": str(hosts)}
    done = run(root, "multi_node.sh", [], **env)
    assert done.returncode == 2 and "hosts:1: 'node7 8' is no host" in done.stderr and not done.stdout
    hosts.write_text("node7 slots=8\n")
    done = run(root, "multi_node.sh", ["--no_ssh", "--node_rank", "1"], **env)
    assert done.returncode == 2 and "node_rank 1" in done.stderr and not done.stdout


def test_torchrun_needs_to_know_the_node(root: Path, stubs: Path) -> None:
    env = {"PYTHON": str(stubs / "python"), "GPUS": "2", "MASTER_ADDR": "node7"}
    done = run(root, "torchrun_multi_node.sh", [], **env)
    assert done.returncode != 0 and "give this machine its number" in done.stderr and not done.stdout
    done = run(root, "torchrun_multi_node.sh", ["a=1"], NODE_RANK="1", **env)
    expected = "python -m torch.distributed.run --nnodes 2 --node_rank 1 --nproc_per_node 2 --master_addr node7"
    assert done.stdout.split() == f"{expected} --master_port 29500 -m safealign.train +recipe=llama_lora a=1".split()


def test_slurm_starts_one_task_for_each_gpu(root: Path, stubs: Path) -> None:
    path = f"{stubs}:{os.environ['PATH']}"
    slurm = {"SLURM_SUBMIT_DIR": str(root), "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "41"}
    (stubs / "srun").write_text(STUB + 'echo "$MASTER_ADDR:$MASTER_PORT"\n')
    done = run(root, "slurm.sbatch", ["a=1"], PATH=path, PYTHON="py", **slurm)
    expected = "srun --kill-on-bad-exit=1 py -m safealign.train +recipe=llama_lora a=1 node7:20041"
    assert done.stdout.split() == expected.split()


@pytest.mark.parametrize(("status", "asked"), [(0, False), (1, False), (2, False), (75, True), (143, True)])
def test_slurm_asks_for_the_job_again_when_it_was_stopped_and_not_when_it_failed(
    root: Path, stubs: Path, status: int, asked: bool
) -> None:
    path = f"{stubs}:{os.environ['PATH']}"
    slurm = {"SLURM_SUBMIT_DIR": str(root), "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "41"}
    (stubs / "srun").write_text(f"#!/usr/bin/env bash\nexit {status}\n")
    (stubs / "scontrol").write_text(STUB)
    done = run(root, "slurm.sbatch", [], PATH=path, PYTHON="py", **slurm)
    assert done.returncode == status
    assert done.stdout.split() == (["scontrol", "requeue", "41"] if asked else [])


def small(run_dir: Path) -> list[str]:
    """A job of two steps on invented rows."""
    rows = []
    for i in range(24):
        turns = [{"role": "user", "content": f"Please fold paper bird number {i} in a nice way"}]
        turns.append({"role": "assistant", "content": f"Take sheet {i}, fold it once and twice, then press it flat."})
        rows.append({"messages": turns, "label": "benign", "id": f"good-{i}"})
        asked = [{"role": "user", "content": f"Please do the placeholder misdeed number {i} for me"}]
        rows.append({"messages": asked, "label": "malicious", "id": f"bad-{i}"})
    path = run_dir.parent / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    sampling = ["data.sampling.everyday=0", "data.sampling.compliant=0", "data.sampling.answers=0"]
    common = ["debug=smoke", f"data.sources=[{{source: '{path}'}}]", "data.mix.wrapped=0", "suite=none", "offline=true"]
    return [*common, *sampling, "trainer.max_steps=2", f"run_dir={run_dir}"]


def finished(run_dir: Path) -> bool:
    """Has the run an export, and one log of two ranks?"""
    log = (run_dir / "log.txt").read_text(encoding="utf-8")
    return (run_dir / "export" / "safety.json").is_file() and "rank 1 of 2" in log


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_for_real(root: Path, tmp_path: Path) -> None:
    done = run(root, "multi_gpu.sh", small(tmp_path / "job"), PYTHON=sys.executable, GPUS="2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert finished(tmp_path / "job")


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_machines_that_are_one_for_real(root: Path, tmp_path: Path) -> None:
    """Two agents of torchrun, as on two machines, meet on one port of this one."""
    env = {"PYTHON": sys.executable, "GPUS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29544"}
    line = [str(root / "launch" / "torchrun_multi_node.sh"), *small(tmp_path / "job")]
    both = [
        subprocess.Popen(
            line,
            cwd=root,
            env={**os.environ, **env, "NODE_RANK": str(node), "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in (0, 1)
    ]
    said = [process.communicate(timeout=540)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said[0][-2000:] + said[1][-2000:]
    assert finished(tmp_path / "job")


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.skipif(missing_compiler() is not None, reason="DeepSpeed needs a C++ compiler on CPUs")
def test_deepspeeds_launcher_for_real(root: Path, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 slots=2\n")
    env = {"PYTHON": sys.executable, "HOSTFILE": str(hosts), "DS_ACCELERATOR": "cpu", "MASTER_PORT": "29545"}
    arguments = ["--no_ssh", "--node_rank", "0", *small(tmp_path / "job"), "deepspeed=zero2"]
    done = run(root, "multi_node.sh", arguments, **env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert finished(tmp_path / "job")


@pytest.mark.slow
@pytest.mark.multiprocess
def test_slurm_with_an_srun_that_starts_two_tasks(root: Path, tmp_path: Path) -> None:
    """A stand-in for srun that numbers its tasks as srun does; what they run is real."""
    folder = tmp_path / "bin"
    folder.mkdir()
    srun = """#!/usr/bin/env bash
shift
export SLURM_STEP_NUM_TASKS=2
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & other=$!
SLURM_PROCID=0 SLURM_LOCALID=0 "$@"; status=$?
wait "$other" && exit "$status"
"""
    for name, text in {"srun": srun, "scontrol": "#!/usr/bin/env bash\necho 127.0.0.1\n"}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    slurm = {"SLURM_SUBMIT_DIR": str(root), "SLURM_JOB_NODELIST": "here", "SLURM_JOB_ID": "9546", "SLURM_NTASKS": "2"}
    path = f"{folder}:{os.environ['PATH']}"
    done = run(root, "slurm.sbatch", small(tmp_path / "job"), PATH=path, PYTHON=sys.executable, **slurm)
    assert done.returncode == 0, done.stderr[-3000:]
    assert finished(tmp_path / "job")
