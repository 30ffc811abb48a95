"""Small invented records, examples of them, and trainers on tiny models that show their gradients."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from safealign.data.records import BENIGN, MALICIOUS, LabelledSpan, Message, Record
from safealign.data.rendering import Renderer
from safealign.modeling.attach import HEAD_NAME, TOKEN_NAME, SafetyParts, attach
from safealign.modeling.safety_token import HeadSettings
from safealign.modeling.tiny import tiny_model, tiny_tokenizer
from safealign.training.collator import SafetyCollator
from safealign.training.examples import Example, ExampleSettings, build_examples
from safealign.training.safety_loss import SafetyObjective
from safealign.training.sft import SafetySFTTrainer, example_dataset

TRIGGER = "Sorry, no"
RENDERER = Renderer(tiny_tokenizer())


def record(
    request: str,
    answer: str | None = None,
    label: str | None = BENIGN,
    judged: str | None = BENIGN,
    **more: Any,
) -> Record:
    turns = [Message("user", request)] + ([Message("assistant", answer)] if answer is not None else [])
    more.setdefault("id", request)
    return Record(tuple(turns), label, judged if answer is not None else None, **more)


def every_pairing() -> list[Record]:
    """Each pairing of request and answer, a transition, an answer that was cut, and prompts alone."""
    bad = "Step one, do the placeholder deed; step two, do it again."
    return [
        record("Name a tree and a bird", "The oak, and the wren sits in it."),
        record("Do the forbidden thing", "Sorry, no. I would rather not do that.", MALICIOUS),
        record("Say how the forbidden is done", bad, MALICIOUS, MALICIOUS),
        record(
            "Tell me of the sea",
            "It is wide. " + bad,
            BENIGN,
            MALICIOUS,
            spans=(LabelledSpan(12, 12 + len(bad), MALICIOUS),),
            complete=False,
        ),
        record("How are kites made", "From paper and", complete=False),
        record("Is the placeholder deed hard", None, MALICIOUS),
        record("Why is it cold", None),
        record("Do tell", "I will, of course.", label=None, judged=None),
    ]


def examples_of(records: Sequence[Record], seed: int = 0, **settings: Any) -> list[Example]:
    return build_examples(records, RENDERER, ExampleSettings(**{"trigger": TRIGGER} | settings), seed)


@dataclass
class Ran:
    """What a short run left behind: the trainer, and per step its loss and the gradients by plain name."""

    trainer: Any
    losses: list[float] = field(default_factory=list)
    gradients: list[dict[str, torch.Tensor]] = field(default_factory=list)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return {plain_name(n): p.detach().float() for n, p in self.trainer.model.named_parameters()}


class _Watch(TrainerCallback):
    def __init__(self, ran: Ran) -> None:
        self.ran = ran

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        found = {plain_name(n): p.grad for n, p in model.named_parameters() if p.grad is not None}
        self.ran.gradients.append({name: grad.detach().float().clone() for name, grad in found.items()})

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.ran.losses.append(logs["loss"])


def plain_name(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".modules_to_save.default", "").replace(".default", "")


def safe_model(architecture: str = "llama", **head: Any) -> tuple[Any, SafetyParts]:
    """A tiny model whose token and head are random, so that every gradient is there from the first step."""
    lm = tiny_model(architecture, layers=2)
    parts = attach(lm, HeadSettings(**{"layers": (0.5, 1.0), "pool": ("row", "mean", "last")} | head))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in (parts.token.weight, parts.head.linear.weight):
            tensor.copy_(0.5 * torch.randn(tensor.shape, generator=generator))
    return lm, parts


def lora() -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=[TOKEN_NAME, HEAD_NAME])


def arguments(folder: Path, **more: Any) -> SFTConfig:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "bf16": False,
        "gradient_checkpointing": False,
    }
    fixed: dict[str, Any] = {
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "max_length": None,
        "prediction_loss_only": True,
        "dataloader_pin_memory": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    return SFTConfig(output_dir=str(folder), **(fixed | settings | more))


def safe_trainer(
    folder: Path,
    examples: Sequence[Example],
    objective: SafetyObjective,
    *,
    architecture: str = "llama",
    peft: Any = None,
    evaluation: bool = False,
    **more: Any,
) -> SafetySFTTrainer:
    lm, parts = safe_model(architecture)
    dataset = example_dataset(list(examples))
    trainer = SafetySFTTrainer(
        model=lm,
        args=arguments(folder, **more),
        train_dataset=dataset,
        eval_dataset=dataset if evaluation else None,
        data_collator=SafetyCollator(examples, RENDERER.tokenizer.pad_token_id),
        processing_class=tiny_tokenizer(),
        peft_config=peft,
    )
    trainer.set_safety(parts, objective)
    return trainer


def plain_trainer(
    folder: Path, examples: Sequence[Example], *, architecture: str = "llama", peft: Any = None, **more: Any
) -> SFTTrainer:
    """TRL's own trainer and collator on the same ids and labels; the same weights, no safety parts."""
    rows = {
        "input_ids": [list(e.input_ids) for e in examples],
        "labels": [list(e.labels) for e in examples],
    }
    return SFTTrainer(
        model=tiny_model(architecture, layers=2),
        args=arguments(folder, **more),
        train_dataset=Dataset.from_dict(rows),
        processing_class=tiny_tokenizer(),
        peft_config=peft,
    )


def run(trainer: Any) -> Ran:
    ran = Ran(trainer)
    trainer.add_callback(_Watch(ran))
    trainer.train()
    return ran


class Kit:
    """The functions above, for tests of this folder."""

    record = staticmethod(record)
    every_pairing = staticmethod(every_pairing)
    examples = staticmethod(examples_of)
    safe_model = staticmethod(safe_model)
    safe_trainer = staticmethod(safe_trainer)
    plain_trainer = staticmethod(plain_trainer)
    run = staticmethod(run)
    arguments = staticmethod(arguments)
    lora = staticmethod(lora)
    renderer = RENDERER
    trigger = TRIGGER


@pytest.fixture(scope="module", autouse=True)
def _quick_collections() -> Iterator[None]:
    """Trainers collect garbage by hand, which takes most of a tiny run: spare them what was there before."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def kit() -> type[Kit]:
    return Kit


@pytest.fixture
def both(tmp_path: Path) -> Callable[..., tuple[Ran, Ran]]:
    """Trains the plain and the safe trainer alike; `peft` makes a fresh adapter config for each."""

    def make(examples: Sequence[Example], objective: SafetyObjective, **how: Any) -> tuple[Ran, Ran]:
        wrap = how.pop("peft", None)
        made = []
        for trainer_of in (plain_trainer, safe_trainer):
            torch.manual_seed(0)
            extra = {"objective": objective} if trainer_of is safe_trainer else {}
            config = wrap() if wrap else None
            made.append(run(trainer_of(tmp_path, examples, peft=config, **extra, **how)))
        return made[0], made[1]

    return make
