"""Trainers on tiny models that write checkpoints and go on from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from transformers import TrainerCallback

from safealign.config import compose
from safealign.data.records import BENIGN, MALICIOUS
from safealign.modeling.attach import HEAD_NAME, TOKEN_NAME
from safealign.modeling.checkpoint import SafetyCard
from safealign.modeling.safety_token import HeadSettings
from safealign.training.callbacks.metrics_file import MetricsFile
from safealign.training.checkpoints.identity import Identity
from safealign.training.checkpoints.keeper import Keeper
from safealign.training.checkpoints.resuming import enable, train_stage
from safealign.training.collator import LENGTH_KEY
from safealign.training.safety_loss import SafetyObjective

IDENTITY = Identity({"seed": 0, "trainer.batch_size": 4}, "model", "data", "thresholds", 1)
CONFIG = compose(["debug=smoke", "trainer.save_steps=2"])
HEAD = HeadSettings((0.5, 1.0), ("row", "mean", "last"))


class Interrupted(Exception):
    """Stands for the end of a process."""


class StopAfter(TrainerCallback):
    """Ends the run when a step is over, before anything is logged, saved or evaluated of it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Interrupted


@dataclass
class Job:
    """Starts a trainer of the same run anew each time, as a process of its own would."""

    kit: Any
    folder: Path
    peft: bool = True
    config: Any = field(default_factory=lambda: CONFIG)
    identity: Identity = IDENTITY
    base_name: str = "tiny_random"
    options: dict[str, Any] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    records: list[Any] | None = None
    dropout: float = 0.2

    def trainer(self, *callbacks: Any, **changes: Any) -> tuple[Any, Keeper]:
        usual = [self.kit.record(f"the sea {i} " + "so " * i, "It is wide.", BENIGN) for i in range(10)]
        usual += [self.kit.record(f"ZZZ deed {i}", "Sorry, no.", MALICIOUS) for i in range(8)]
        examples = self.kit.examples(usual if self.records is None else self.records)
        options = {
            "max_steps": 7,
            "optim": "adamw_torch",
            "learning_rate": 1e-2,
            "lr_scheduler_type": "linear",
            "max_grad_norm": 1.0,
            "train_sampling_strategy": "group_by_length",
            "length_column_name": LENGTH_KEY,
            "eval_strategy": "steps",
            "eval_steps": 3,
            "eval_on_start": True,
        } | self.options
        lora = LoraConfig(
            r=4,
            target_modules=["q_proj", "v_proj"],
            modules_to_save=[TOKEN_NAME, HEAD_NAME],
            lora_dropout=self.dropout,
        )
        objective = SafetyObjective(1.0, head_learning_rate=1e-2)
        options |= {"peft": lora if self.peft else None, "evaluation": True}
        trainer = self.kit.safe_trainer(self.folder / "checkpoints", examples, objective, **options)
        trainer.example_ids = {index: f"row-{index}" for index in range(len(examples))}
        trainer.run_dir = self.folder
        for callback in (MetricsFile(self.folder / "metrics.jsonl"), *callbacks):
            trainer.add_callback(callback)
        config = replace(self.config, run_dir=str(self.folder), **changes)
        card = SafetyCard(HEAD, "append", False, "Sorry, no", "No.")
        keeper = Keeper.open(config, self.identity, card, self.base_name, self.said.append)
        enable(trainer, keeper, "sft", 0)
        return trainer, keeper

    def run(self, *callbacks: Any, **changes: Any) -> Any:
        trainer, keeper = self.trainer(*callbacks, **changes)
        train_stage(trainer, keeper.start_of("sft"), 0)
        return trainer

    def killed_after(self, step: int) -> None:
        with pytest.raises(Interrupted):
            self.run(StopAfter(step))

    @property
    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "checkpoints").iterdir())

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What was logged, apart from what depends on the clock."""
        lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        timed = ("time", "memory_gb", "per_second", "runtime", "communication_share")
        rows = [row for row in map(json.loads, lines) if "train_runtime" not in row]
        return [{k: v for k, v in row.items() if not k.endswith(timed)} for row in rows]


@pytest.fixture
def job(kit: Any, tmp_path: Path) -> Callable[..., Job]:
    def make(name: str = "job", **how: Any) -> Job:
        return Job(kit, tmp_path / name, **how)

    return make


@pytest.fixture(scope="session")
def make_job() -> type[Job]:
    return Job


@pytest.fixture(scope="session")
def identity() -> Identity:
    return IDENTITY
