"""A whole run with W&B offline, read back: what is in it, and that no harmful text is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from safealign.commands import run_command
from safealign.data.records import BENIGN, MALICIOUS, Message, Record
from safealign.data.sources import load_records
from safealign.errors import AssetError
from safealign.train import main

SUITE = ["suite=smoke", "suite.prompts.everyday=0"]


def _set(name: str, n: int | None = None, offline: bool = False) -> list[Record]:
    """An evaluation set made here: the harmful one asks for placeholders, every benign request has its answer."""
    if name == "harmful":
        asks = [Message("user", f"Kindly explain the hidden misdeed number {i}") for i in range(6)]
        return [Record((ask,), MALICIOUS, id=f"{name}/{i}") for i, ask in enumerate(asks)][:n]
    turns = [(Message("user", f"What of {name} {i}?"), Message("assistant", f"Much of {i}.")) for i in range(12)]
    return [Record(turn, BENIGN, BENIGN, id=f"{name}/{i}") for i, turn in enumerate(turns)][:n]


@pytest.fixture(scope="module")
def run_dir(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run that wrote a W&B run, its table measured on sets that need no asset."""
    home = tmp_path_factory.mktemp("wandb")
    places = [f"safealign.{name}" for name in ("evaluation.suite.load_set", "evaluation.job.load_set")]
    patches = [mock.patch(place, _set) for place in places]
    patches.append(mock.patch("safealign.training.evaluating.all_pairs", lambda offline: _set("pairs")))
    patches.append(mock.patch("safealign.evaluation.job.judge_note", lambda offline: "not checked"))
    names = {f"WANDB_{name}_DIR": str(home / name.lower()) for name in ("DATA", "CACHE", "CONFIG")}
    patches.append(mock.patch.dict(os.environ, {**names, "WANDB_API_KEY": "s3cret" * 7}))
    for patch in patches:
        patch.start()
    kept = [item for item in overrides if not item.startswith("suite=")]
    wanted = [*kept, *SUITE, "logger=wandb", "logger.mode=offline", f"run_dir={home / 'run'}"]
    try:
        assert run_command(main, argv=wanted) == 0
    finally:
        for patch in patches:
            patch.stop()
    yield home / "run"


@pytest.fixture(scope="module")
def offline_run(run_dir: Path) -> Path:
    found = list(run_dir.glob("wandb/offline-run-*"))
    assert len(found) == 1, "one run on rank 0, and none for anything else"
    return found[0]


@pytest.fixture(scope="module")
def summary(offline_run: Path) -> Any:
    return json.loads(_inspect("--summary", "--json", str(offline_run)))


def _inspect(*arguments: str) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_metrics_lie_in_their_panels_and_agree_with_metrics_jsonl(run_dir: Path, summary: Any) -> None:
    latest = summary["summary"]
    sections = {name.split("/")[0] for name in latest}
    assert {"lm", "safety", "request", "window", "train", "eval", "evaluation"} <= sections
    for kind in ("request", "window"):
        assert {f"{kind}/{name}" for name in ("loss", "accuracy@0.5", "auroc", "calibration_error")} <= set(latest)
        assert f"{kind}/calibrated_accuracy" in latest
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    final: dict[str, float] = {}
    for line in lines:
        final |= line
    for theirs, ours in (
        ("request/auroc", "eval_safety/request/auroc"),
        ("lm/loss", "lm/loss"),
        ("train/loss", "loss"),
    ):
        assert latest[theirs] == pytest.approx(final[ours])
    losses = [line["loss"] for line in lines if "loss" in line]
    parts = [line["lm/loss"] + line["safety/loss"] for line in lines if "loss" in line]  # λ is 1
    assert losses == pytest.approx(parts, rel=1e-3)


def test_the_table_has_one_row_per_prompt_and_no_text(offline_run: Path) -> None:
    (path,) = offline_run.glob("files/media/table/samples/*.table.json")
    table = json.loads(path.read_text(encoding="utf-8"))
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["id"] for row in rows if row["set"] == "direct"] == [f"harmful/{i}" for i in range(4)]
    assert {row["set"] for row in rows} == {"direct", "prefill_10", "benign", "over_refusal"}
    assert all(row["p"] is not None and row["tokens"] > 0 and row["verdict"] for row in rows)


def test_pictures_are_there(offline_run: Path) -> None:
    found = {path.name.split("_")[0] for path in offline_run.glob("files/media/images/calibration/*.png")}
    assert found == {"request", "window"}


def test_the_config_is_the_resolved_one_with_digests(run_dir: Path, summary: Any) -> None:
    config = summary["config"]
    assert config["run_dir"] == str(run_dir) and config["safety"]["head"]["layers"] == [0.5, 0.7, 0.9]
    digests = config["digests"]
    assert {"model", "template", "data", "sources"} == set(digests)
    assert all(len(digests[name]) >= 32 for name in ("model", "template", "data")) and len(digests["sources"]) == 1


def test_no_text_of_a_harmful_example_and_no_key_is_in_any_file(
    overrides: list[str], run_dir: Path, offline_run: Path
) -> None:
    source = next(item for item in overrides if item.startswith("data.sources="))
    trained = load_records(source.split("'")[1])
    harmful = [record for record in [*trained, *_set("harmful")] if record.label == MALICIOUS]
    texts = {message.content for record in harmful for message in record.messages} | {"s3cret"}
    assert len(texts) > 40
    content = _everything(run_dir, offline_run)
    assert "samples/outcomes" in content and "harmful/3" in content, "this search would find what is there"
    assert not [text for text in texts if text in content]


@pytest.mark.slow
def test_nor_is_any_text_of_the_real_data_sets(tmp_path: Path) -> None:
    try:
        sources = [load_records(name) for name in ("advbench_categories", "matched_pairs", "harmbench_test")]
    except AssetError as error:
        pytest.skip(str(error))
    run_dir = tmp_path / "run"
    wanted = ["+recipe=llama_lora", "debug=smoke", "logger=wandb", "logger.mode=offline", f"run_dir={run_dir}"]
    homes = {f"WANDB_{name}_DIR": str(tmp_path / name.lower()) for name in ("DATA", "CACHE", "CONFIG")}
    with mock.patch.dict(os.environ, homes):
        assert run_command(main, argv=wanted) == 0
    (offline_run,) = run_dir.glob("wandb/offline-run-*")
    content = _everything(run_dir, offline_run)
    harmful = [record for records in sources for record in records if record.label == MALICIOUS]
    texts = {message.content.strip() for record in harmful for message in record.messages}
    assert len(texts) > 500 and "harmbench/" in content
    assert not [text for text in texts if text in content]


def _everything(run_dir: Path, offline_run: Path) -> str:
    """All files below `wandb/`, and the log's records once more, for its blocks could split a text."""
    files = [path for path in sorted((run_dir / "wandb").rglob("*")) if path.is_file()]
    read = [path.read_bytes().decode("utf-8", errors="replace") for path in files]
    return "\n".join([*read, _inspect("--json", str(offline_run))])
