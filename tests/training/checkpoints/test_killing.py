"""A job that is killed, at any instant and as often as one likes, ends as the job that was left alone."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from dying_jobs import CONTEXT, job, losses, run
from safetensors.torch import load_file
from small_jobs import small_job

from safealign.commands import PREEMPTED

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Fine-tuning, then preferences, with dropout: six steps each, a save every two, an evaluation every three."""
    return [
        *small_job("llama_sft_dpo", tmp_path_factory.mktemp("data") / "mine.jsonl"),
        "adapter.dropout=0.1",
        "trainer.max_steps=6",
        "trainer.save_steps=2",
        "trainer.eval_steps=3",
        "trainer.keep_last=2",
    ]


@pytest.fixture(scope="module")
def alone(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The job that nobody disturbs, and the seconds that it takes."""
    folder = tmp_path_factory.mktemp("alone") / "job"
    first = CONTEXT.Process(target=time.sleep, args=(0,))  # whatever is forked after it finds everything imported
    first.start(), first.join()
    started = time.monotonic()
    assert run([*arguments, f"run_dir={folder}"], folder.parent / "log") == 0
    return folder, time.monotonic() - started


def _assert_same(found: Path, expected: Path) -> None:
    ours, theirs = losses(found), losses(expected)
    assert [row.get("step") for row in ours] == [row.get("step") for row in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            wanted = pytest.approx(other[key], abs=1e-6) if isinstance(value, float) else other[key]
            assert value == wanted, (one, key)
    assert sorted(p.name for p in (found / "checkpoints").iterdir()) == sorted(
        p.name for p in (expected / "checkpoints").iterdir()
    )
    files = ("export/model", "export/safety", "checkpoints/step-12/adapter_model", "checkpoints/step-12/safety")
    for name in files:
        one, other = (load_file(folder / f"{name}.safetensors") for folder in (found, expected))
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert torch.equal(value, other[key]), (name, key)
    cards = [json.loads((folder / "export/safety.json").read_text(encoding="utf-8")) for folder in (found, expected)]
    assert cards[0]["thresholds"] == cards[1]["thresholds"]


def test_killed_at_every_kind_of_instant(arguments: list[str], alone: tuple[Path, float], tmp_path: Path) -> None:
    folder, log = tmp_path / "job", tmp_path / "log"
    argv = [*arguments, f"run_dir={folder}"]
    # In the first stage, then in the second, then after training; each starts where the one before was killed.
    for instant, call in [
        ("step", 2),
        ("manifest unwritten", 1),
        ("evaluation", 1),
        ("optimizer written", 2),
        ("unsynced", 1),
        ("evaluation", 4),
        ("replaced", 2),
        ("removing", 5),
        ("step", 2),
        ("calibration", 1),
        ("export", 1),
        ("export", 2),
        ("unsynced", 1),
    ]:
        status = run(argv, log, instant, call)
        assert status == -signal.SIGKILL, (instant, call, status, log.read_text()[-2000:])
    assert run(argv, log) == 0, log.read_text()[-2000:]
    _assert_same(folder, alone[0])
    text = log.read_text()
    assert "going on from" in text and "it was not finished when the run ended" in text


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random(arguments: list[str], alone: tuple[Path, float], tmp_path: Path, seed: int) -> None:
    folder, log, draw = tmp_path / "job", tmp_path / "log", random.Random(seed)
    argv, killed = [*arguments, f"run_dir={folder}"], 0
    for _ in range(4):
        status = run(argv, log, kill_after=draw.uniform(0.2, 0.8) * alone[1])
        if status == 0:
            break
        assert status == -signal.SIGKILL
        killed += 1
    if status != 0:
        assert run(argv, log) == 0, log.read_text()[-2000:]
    assert killed
    _assert_same(folder, alone[0])


def test_sigterm_saves_and_says_so_by_its_status(
    arguments: list[str], alone: tuple[Path, float], tmp_path: Path
) -> None:
    folder, log = tmp_path / "job", tmp_path / "log"
    argv = [*arguments, f"run_dir={folder}", "trainer.save_steps=null"]
    process = CONTEXT.Process(target=job, args=(argv, str(log)))
    process.start()
    metrics = folder / "metrics.jsonl"
    while not (metrics.is_file() and '"loss"' in metrics.read_text()):
        assert process.is_alive(), log.read_text()[-2000:]
        time.sleep(0.01)
    process.terminate()
    process.join()
    assert process.exitcode == PREEMPTED == 75, log.read_text()[-2000:]
    saved = [path.name for path in (folder / "checkpoints").iterdir()]
    assert len(saved) == 1 and saved[0] != "step-6"
    assert f"stopped by SIGTERM at step {saved[0].removeprefix('step-')}, which is saved" in log.read_text()
    assert run(argv, log) == 0
    steps = [row for row in losses(folder) if "loss" in row]
    expected = [row for row in losses(alone[0]) if "loss" in row]
    assert [row["loss"] for row in steps] == pytest.approx([row["loss"] for row in expected], abs=1e-6)


def test_a_finished_job_is_not_trained_or_calibrated_again(
    arguments: list[str], alone: tuple[Path, float], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    before = (alone[0] / "metrics.jsonl").read_bytes()
    assert run([*arguments, f"run_dir={alone[0]}"], log) == 0
    text = log.read_text()
    assert "going on from" in text
    work = ("warm start:", "step 1/6", "calibration: judging", "token head: fitting")
    assert not any(phrase in text for phrase in work)
    assert (alone[0] / "metrics.jsonl").read_bytes() == before
