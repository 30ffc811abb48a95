"""A small job on a tiny random model with data of the user's own: everything a run does, in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_jobs import small_job

from safealign.commands import run_command
from safealign.train import main


@pytest.fixture(scope="session")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A job without any asset: tiny model, own file, nothing sampled, no table."""
    return small_job("llama_lora", tmp_path_factory.mktemp("data") / "mine.jsonl")


@pytest.fixture(scope="session")
def run_dir(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("run") / "job"
    assert run_command(main, argv=[*overrides, f"run_dir={folder}"]) == 0
    return folder
