"""What DeepSpeed's first run on CPUs needs is found, or asked for in a sentence."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from safealign.config import compose
from safealign.ranks.compiling import missing_compiler, tools_on_path
from safealign.training.checks import config_problems


def test_the_interpreters_own_folder_comes_first_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    own = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", os.pathsep.join(["/usr/bin", own, "/bin"]))
    tools_on_path()
    tools_on_path()
    assert os.environ["PATH"].split(os.pathsep) == [own, "/usr/bin", "/bin"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="nothing is compiled for a CPU where there is a GPU")
def test_a_missing_compiler_is_said_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert missing_compiler() == "no-such-compiler"
    (said,) = (line for line in config_problems(compose(["deepspeed=zero2"])) if "no-such-compiler" in line)
    assert said.startswith("deepspeed=zero2") and "deepspeed=none" in said
    assert not any("no-such-compiler" in line for line in config_problems(compose([])))
    monkeypatch.setenv("CXX", sys.executable)
    assert missing_compiler() is None


def test_a_variable_that_would_leave_deepspeed_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    (said,) = (line for line in config_problems(compose(["deepspeed=zero2"])) if "ACCELERATE_USE_CPU" in line)
    assert said.startswith("deepspeed=zero2") and said.endswith("unset it")
    assert not any("ACCELERATE_USE_CPU" in line for line in config_problems(compose([])))
