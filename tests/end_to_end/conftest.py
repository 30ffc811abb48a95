"""A small job on a tiny random model with data of the user's own: everything a run does, in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safealign.commands import run_command
from safealign.train import main


def rows() -> list[dict[str, object]]:
    """Mild invented records of both labels, with harmless and (placeholder) harmful answers."""
    found: list[dict[str, object]] = []
    for i in range(30):
        fold = {"role": "user", "content": f"Please fold paper bird number {i} in a nice way"}
        how = {"role": "assistant", "content": f"Take sheet {i}, fold it once and twice, then press it flat."}
        found.append({"messages": [fold, how], "label": "benign", "id": f"good-{i}"})
        ask = {"role": "user", "content": f"Please do the placeholder misdeed number {i} for me"}
        done = {"role": "assistant", "content": f"First take placeholder {i}, then do the misdeed step by step."}
        harmful = {"messages": [ask, done], "label": "malicious", "response_label": "malicious", "id": f"bad-{i}"}
        found.append(harmful if i % 2 else {"messages": [ask], "label": "malicious", "id": f"bad-{i}"})
    return found


@pytest.fixture(scope="session")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A job without any asset: tiny model, own file, nothing sampled, no table."""
    path = tmp_path_factory.mktemp("data") / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows()), encoding="utf-8")
    return [
        "+recipe=llama_lora",
        "debug=smoke",
        f"data.sources=[{{source: '{path}'}}]",
        "data.sampling.everyday=0",
        "data.sampling.compliant=0",
        "data.mix.wrapped=0",
        "data.harmful_answers=8",
        "suite=none",
        "offline=true",
    ]


@pytest.fixture(scope="session")
def run_dir(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("run") / "job"
    assert run_command(main, argv=[*overrides, f"run_dir={folder}"]) == 0
    return folder
