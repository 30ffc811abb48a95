"""Shared by all tests: one thread per process, the same random state, no telemetry."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# Before torch is imported: two spinning thread pools on two cores run many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest
import torch
from hypothesis import HealthCheck, settings

from safealign.ranks.compiling import tools_on_path

if TYPE_CHECKING:
    from safealign.model import SafeModel

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(Path(__file__).parent))  # helper modules of this folder (`tiny_models`) import by their names

tools_on_path()  # as a run that uses DeepSpeed does: its processes find one ninja, and compile once

# No deadline: the machine that runs the tests may be busy with something else.
settings.register_profile("safealign", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("safealign")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's top folder."""
    return ROOT


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)


@pytest.fixture
def calm() -> SafeModel:
    """A tiny model that never intervenes."""
    from tiny_models import NEVER, build

    return build(NEVER)


@pytest.fixture
def strict() -> SafeModel:
    """A tiny model that refuses every request."""
    from tiny_models import build

    return build({"query": -1e3, "window": 1e3, "prefix": 1e3}, max_new_tokens=64)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--write-table`: write docs/architectures.md from what tests/architectures finds."""
    parser.addoption("--write-table", action="store_true", help="write docs/architectures.md from the tests' results")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
