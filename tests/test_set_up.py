"""Makefile, launch scripts and packaging: what a newcomer types works as it is written down."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    return [*project["dependencies"], *(item for extra in extras for item in extra)]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_requirements_are_lower_bounds_and_each_has_a_tested_version() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {_normal(line.split("==")[0]): line.split("==")[1] for line in lines if not line.startswith("#")}
    for requirement in _requirements():
        name, bound = requirement.split(">=")
        assert _normal(name) in pins, f"constraints.txt has no version of {name}"
        tested, least = (
            tuple(map(int, re.findall(r"\d+", text)[:2])) for text in (pins[_normal(name)], bound)
        )
        assert tested >= least, requirement
    assert not [pin for pin in pins.values() if "+" in pin], "a local build cannot be installed elsewhere"


def test_developers_install_what_the_server_needs() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras["serve"]) <= set(extras["dev"])


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_alone_lists_every_target() -> None:
    printed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {"help", "train", "table", "test", "lint", "clean"} <= set(targets)
    assert all(re.search(rf"make {target} +\w", printed) for target in targets)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_passes_run_dir_and_index_on() -> None:
    arguments = ["make", "-n", "-B", "train", "RUN_DIR=elsewhere", "TORCH_INDEX=https://torch.example/cpu"]
    printed = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "run_dir=elsewhere" in printed
    assert "--extra-index-url https://torch.example/cpu" in printed


@pytest.mark.parametrize(
    "script", [".ci/run", *(f"launch/{path.name}" for path in (ROOT / "launch").glob("*.sh"))]
)
def test_scripts_can_be_run_and_stop_at_the_first_fault(script: str) -> None:
    path = ROOT / script
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in path.read_text()
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.slow
def test_single_gpu_script_trains(tmp_path: Path) -> None:
    arguments = ["launch/single_gpu.sh", "debug=smoke", f"run_dir={tmp_path}/run"]
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "run/export/safety.json").is_file()
    assert (tmp_path / "run/report/summary.json").is_file()


@pytest.mark.slow
def test_the_wheel_carries_the_config_files(tmp_path: Path) -> None:
    arguments = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path),
        str(ROOT),
    ]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    wheel = next(tmp_path.glob("*.whl"))
    files = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml"))
    with zipfile.ZipFile(wheel) as archive:
        assert {f"safealign/{name}" for name in files} <= set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    code = "import safealign.config as c; print(c.conf_dir()); print(c.compose(['+recipe=llama_lora']).name)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    printed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert printed == [str(tmp_path / "installed/safealign/conf"), "llama_lora"]
