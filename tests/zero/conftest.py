"""Runs on two CPU ranks under each ZeRO stage, and the same run in one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from dying_jobs import CONTEXT
from two_ranks import TESTS, load_module, run

from safealign.config import compose
from safealign.data.records import BENIGN, MALICIOUS, Message, Record
from safealign.ranks.compiling import missing_compiler
from safealign.training.checkpoints.weights import load_weights

# Examples of a step, on all ranks together; they do not divide the 17 that there are: the second rank gets nothing in
# the last step of an epoch, and the first one example.
WHOLE_BATCH, N_RECORDS = 4, 17


@dataclass(frozen=True)
class Finished:
    """What a run left behind."""

    folder: Path

    @property
    def logged(self) -> list[dict[str, float]]:
        """The rows of training, one for each step."""
        rows = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        return [row for row in rows if "loss" in row]

    def curve(self, name: str) -> list[float]:
        """A logged value by step."""
        return [row[name] for row in self.logged]

    def log(self, rank: int = 0) -> str:
        """What a rank printed."""
        return (self.folder / f"log-{rank}").read_text(encoding="utf-8")

    def rows(self, rank: int) -> list[int]:
        """Labelled safety rows of each of a rank's batches."""
        return [int(line) for line in (self.folder / f"rows-{rank}").read_text(encoding="utf-8").split()]

    def weights(self, rank: int = 0) -> dict[str, torch.Tensor]:
        """All weights at the end, as a rank had them in memory; under ZeRO-3 gathered."""
        read = torch.load
        found: dict[str, torch.Tensor] = read(self.folder / f"end-{rank}.pt", weights_only=True)
        return found


def records() -> list[Record]:
    """Two in three without a label, so that batches, ranks and whole steps have no safety row."""
    found = []
    for i in range(N_RECORDS):
        benign, labelled = i < 10, i % 3 == 0
        ask = Message("user", f"the sea {i} " + "so " * i if benign else f"ZZZ deed {i}")
        answer = Message("assistant", "It is wide." if benign else "Sorry, no.")
        label = (BENIGN if benign else MALICIOUS) if labelled else None
        found.append(Record((ask, answer), label, BENIGN if benign and labelled else None, id=f"row-{i}"))
    return found


def train(
    folder: Path, stage: str, world: int = 2, accumulation: int = 1, **befalls: dict[int, Any]
) -> tuple[list[int], Finished]:
    """Trains on all ranks, without dropout, whose masks depend on how a batch is cut; statuses, and what is there."""
    options = {
        "per_device_train_batch_size": WHOLE_BATCH // world // accumulation,
        "gradient_accumulation_steps": accumulation,
        "deepspeed": compose([f"deepspeed={stage}"]).deepspeed.config,
    }
    job = {"options": options, "records": records(), "dropout": 0.0}
    return run(folder, world, settings={"deepspeed.name": stage}, job=job, **befalls), Finished(folder)


def _compile() -> None:
    from deepspeed.accelerator import get_accelerator

    get_accelerator().create_op_builder("ShareMemCommBuilder").load()


@pytest.fixture(scope="session")
def compiled() -> None:
    """DeepSpeed compiles an extension for CPUs once per machine; the time for it is no rank's to wait."""
    if missing_compiler():
        pytest.skip("DeepSpeed compiles an extension for CPUs, and there is no C++ compiler")
    process = CONTEXT.Process(target=_compile)
    process.start()
    process.join(400)
    assert process.exitcode == 0


@pytest.fixture(scope="session")
def finished(compiled: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Finished]:
    """A run that nobody disturbs, made once: `finished(stage, world, accumulation)`."""

    @cache
    def make(stage: str, world: int = 2, accumulation: int = 1) -> Finished:
        statuses, found = train(tmp_path_factory.mktemp(stage) / "job", stage, world, accumulation)
        assert statuses == [0] * world, found.log()[-3000:]
        return found

    return make


@pytest.fixture(scope="session")
def start(compiled: None) -> Callable[..., tuple[list[int], Finished]]:
    """A run that may be disturbed: `start(folder, stage, world, die={rank: step})`."""
    return train


@pytest.fixture
def load_alone(tmp_path: Path) -> Callable[[Path], dict[str, torch.Tensor]]:
    """All weights of a fresh model, after `load_weights` has put a checkpoint into it in this process."""

    def load(checkpoint: Path) -> dict[str, torch.Tensor]:
        kit = load_module("training_kit", TESTS / "training" / "conftest.py").Kit
        job = load_module("checkpoint_kit", TESTS / "training" / "checkpoints" / "conftest.py").Job(kit, tmp_path)
        trainer, _ = job.trainer()
        load_weights(checkpoint, trainer.model, trainer.parts)
        return dict(trainer.model.state_dict())

    return load
