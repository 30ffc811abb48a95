"""Tiny jobs on one or several ranks over gloo, and what each step of them came to: losses, gradient norm, rows.

`curve(folder, DPO, ranks=2, batch=2)` trains pairs on two ranks; jobs of one `batch * accumulation * ranks` see the
same examples in the same steps, whatever the three are. More arguments: `adapter=True` for LoRA, `sft_weight` and
`reference` (a folder) for preferences, `streaming` for documents; all others go to TRL's config (`deepspeed={…}`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from dying_jobs import CONTEXT

TESTS = Path(__file__).parent
SFT, DPO, DOCUMENTS = "sft", "dpo", "pretraining"
LOSSES = ("loss", "grad_norm", "safety/loss")


@dataclass
class Curve:
    """What the ranks left: rank 0's log by step; examples of an epoch (0: a stream); per step and rank how many
    labelled safety rows it had; per rank how many batches of the reference's pass it computed; what accelerate calls
    the way the ranks work together.
    """

    rows: list[dict[str, float]]
    n: int
    labelled: list[list[int]]
    reference_batches: list[int]
    engine: str
    logs: list[str]

    def of(self, name: str) -> list[float]:
        return [row[name] for row in self.rows]


def curve(
    folder: Path, kind: str, *, ranks: int = 1, batch: int = 4, accumulation: int = 1, n: int = 19, **options: Any
) -> Curve:
    """Trains `n` examples or pairs for two epochs, two in three without a safety label; raises where it fails."""
    folder.mkdir(parents=True)
    options |= {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    launcher = ranks > 1 or "deepspeed" in options
    statuses, logs = _launch(folder, ranks, _train, [(Path(folder), kind, n, options)] * ranks, launcher)
    assert statuses == [0] * ranks, f"{statuses}\n" + "\n".join(log[-3000:] for log in logs)
    found = [json.loads((folder / f"rank-{number}.json").read_text()) for number in range(ranks)]
    labelled = [list(step) for step in zip(*(one["labelled"] for one in found), strict=True)]
    passes = [one["reference_batches"] for one in found]
    return Curve(found[0]["rows"], found[0]["n"], labelled, passes, found[0]["engine"], logs)


def command(
    folder: Path, argv: Sequence[str], ranks: int = 2, die: dict[int, tuple[str, int]] | None = None
) -> tuple[list[int], list[str]]:
    """`safealign.train` on several ranks: their statuses and what they printed.

    `die={1: ("step", 6)}` kills rank 1 at the sixth time of an instant of `dying_jobs`.
    """
    return _launch(folder, ranks, _command, [(list(argv), (die or {}).get(rank)) for rank in range(ranks)], True)


def _launch(
    folder: Path, ranks: int, work: Callable[..., int], arguments: Sequence[tuple[Any, ...]], launcher: bool
) -> tuple[list[int], list[str]]:
    """Runs `work(rank, *arguments[rank])` in processes that see what a launcher sets, each with a log of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for number in range(ranks):
        world = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": ranks, "MASTER_PORT": port}
        world |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true"}
        world["DS_ACCELERATOR"] = "cpu"
        environment = {key: str(value) for key, value in world.items()} if launcher else {}
        log = str(folder / f"log-{number}")
        Path(log).unlink(missing_ok=True)
        processes.append(CONTEXT.Process(target=_rank, args=(log, environment, work, number, arguments[number])))
        processes[-1].start()
    for process in processes:
        process.join(180)
        if process.is_alive():
            process.kill()
            process.join()
    logs = [(folder / f"log-{number}").read_text(encoding="utf-8") for number in range(ranks)]
    return [int(process.exitcode or 0) for process in processes], logs


def _rank(log: str, environment: dict[str, str], work: Callable[..., int], number: int, arguments: Any) -> None:
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1), os.dup2(stream, 2)
    os.environ |= environment
    status = 1
    try:
        status = work(number, *arguments)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


def _command(number: int, argv: list[str], dies: tuple[str, int] | None) -> int:
    from dying_jobs import arm

    from safealign.commands import run_command
    from safealign.train import main

    if dies is not None:
        arm(*dies)
    return run_command(main, argv=argv, many_ranks=True)


def _train(number: int, folder: Path, kind: str, n: int, options: dict[str, Any]) -> int:
    import torch
    from transformers import TrainerCallback

    from safealign.training.callbacks.split_head import SplitHead
    from safealign.training.safety_loss import SafetyObjective

    if "deepspeed" in options:
        os.environ.pop("ACCELERATE_USE_CPU", None)  # with it accelerate leaves DeepSpeed out without a word
    kit = _load("training_kit", TESTS / "training" / "conftest.py").Kit
    settings = {
        "num_train_epochs": 2,
        "max_steps": -1,
        "learning_rate": 0.05,
        "optim": "sgd",
        "max_grad_norm": 1.0,
        "train_sampling_strategy": "group_by_length",
        "length_column_name": "length",
        "ddp_find_unused_parameters": False,
        "ddp_timeout": 60,
        "seed": 3,
    }
    make = {SFT: _sft, DPO: _dpo, DOCUMENTS: _documents}[kind]
    trainer = make(kit, folder, n, SafetyObjective(1.0), settings | options)
    rows: list[dict[str, float]] = []
    labelled: list[int] = []

    class Keep(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            labelled.append(0)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                rows.append({"step": state.global_step} | {k: v for k, v in logs.items() if isinstance(v, float | int)})

    real = trainer.compute_loss

    def counted(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        labelled[-1] += int((inputs["safety_labels"] >= 0).sum())
        return real(model, inputs, *args, **kwargs)

    trainer.compute_loss = counted
    trainer.add_callback(Keep())
    trainer.add_callback(SplitHead())
    torch.manual_seed(0)
    trainer.train()
    examples = len(trainer.train_dataset) if hasattr(trainer.train_dataset, "__len__") else 0
    found: dict[str, Any] = {"rows": rows, "n": examples, "labelled": labelled}
    found["reference_batches"] = getattr(trainer, "reference_batches", 0)
    found["engine"] = trainer.accelerator.distributed_type.value
    (folder / f"rank-{number}.json").write_text(json.dumps(found))
    return 0


def _sft(kit: Any, folder: Path, n: int, objective: Any, settings: dict[str, Any]) -> Any:
    import torch

    from safealign.data.records import BENIGN, MALICIOUS

    records = []
    for i in range(n):
        label = None if i % 3 else (BENIGN, MALICIOUS)[i % 2]
        words = "so " * (i % 5)
        records.append(kit.record(f"Tell {words}of {i}", f"It is {words}wide.", label, label and BENIGN))
    settings["peft"] = kit.lora() if settings.pop("adapter", False) else None
    torch.manual_seed(0)
    return kit.safe_trainer(folder / "trainer", kit.examples(records), objective, **settings)


def _dpo(kit: Any, folder: Path, n: int, objective: Any, settings: dict[str, Any]) -> Any:
    import torch
    from trl import DPOConfig

    from safealign.data.preferences import Preference
    from safealign.data.records import BENIGN, MALICIOUS, Message
    from safealign.modeling.tiny import tiny_tokenizer
    from safealign.training.dpo import SafetyDPOTrainer
    from safealign.training.examples import ExampleSettings
    from safealign.training.pair_examples import PairCollator, build_pair_examples, pair_dataset
    from safealign.training.reference_cache import ReferenceCache

    preferences = []
    for i in range(n):
        words, label = "so " * (i % 5), (BENIGN, MALICIOUS)[i % 2]
        asked = (Message("user", f"Tell {words}of {i}"),)
        chosen, rejected = (f"It is {words}wide.", "Sorry, no.")[:: 1 if label == BENIGN else -1]
        preferences.append(Preference(asked, chosen, rejected, label, BENIGN, id=str(i)))
    pairs = build_pair_examples(preferences, kit.renderer, ExampleSettings(kit.trigger), 0)
    bare = [replace(pair, chosen=_bare(pair.chosen), rejected=_bare(pair.rejected)) for pair in pairs]
    pairs = [bare[i] if i % 3 else pair for i, pair in enumerate(pairs)]
    lm, parts = kit.safe_model()
    peft = kit.lora() if settings.pop("adapter", False) else None
    sft_weight, reference = settings.pop("sft_weight", 0.0), settings.pop("reference", folder / "reference")
    arguments = kit.arguments(folder / "trainer", **settings).to_dict()
    known = DPOConfig.__dataclass_fields__
    arguments = {key: value for key, value in arguments.items() if key in known and known[key].init}
    arguments |= {"loss_type": settings.get("loss_type", "sigmoid"), "precompute_ref_log_probs": True}

    class Counting(SafetyDPOTrainer):
        reference_batches = 0

        def compute_ref_log_probs(self, *args: Any) -> Any:
            self.reference_batches += 1
            return super().compute_ref_log_probs(*args)

    torch.manual_seed(0)
    return Counting(
        model=lm,
        args=DPOConfig(**arguments),
        train_dataset=pair_dataset(pairs),
        data_collator=PairCollator(pairs, tiny_tokenizer().pad_token_id),
        processing_class=tiny_tokenizer(),
        peft_config=peft,
        parts=parts,
        objective=objective,
        sft_weight=sft_weight,
        cache=ReferenceCache(reference, {}),
    )


def _documents(kit: Any, folder: Path, n: int, objective: Any, settings: dict[str, Any]) -> Any:
    """Set up from a config, as the command does it, but for the optimiser and its schedule."""
    from rich.console import Console
    from transformers.training_args import OptimizerNames

    from safealign.config import compose
    from safealign.training.document_data import prepare_documents
    from safealign.training.pretraining import build_pretrainer

    rows = [{"text": f"It rains at place {i}. " * (1 + i % 4)} for i in range(n)]
    for i in range(0, n, 7):
        rows[i]["label"] = ("benign", "malicious")[i % 2]
    path = folder.parent / "documents.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    overrides = ["+recipe=llama_pretrain", "debug=smoke", "model=tiny_random", "offline=true", "data.max_length=96"]
    overrides += [f"data.documents.sources=[{{source: '{path}'}}]", "data.documents.validation=0"]
    overrides += [f"trainer.batch_size={settings['per_device_train_batch_size']}", "trainer.max_steps=10"]
    overrides += [f"trainer.gradient_accumulation={settings['gradient_accumulation_steps']}", f"run_dir={folder}"]
    overrides += [f"data.documents.streaming={str(settings['streaming']).lower()}", "safety.lambda_cls=1"]
    overrides += ["data.documents.shuffle_buffer=0", "trainer.logging_steps=1", "trainer.precision=fp32"]
    config = compose(overrides)
    data = prepare_documents(config, kit.renderer, lambda text: None)
    lm, parts = kit.safe_model()
    trainer = build_pretrainer(config, lm, kit.renderer, data, parts, Console(quiet=True))
    trainer.args.optim, trainer.args.lr_scheduler_type = OptimizerNames.SGD, "constant"
    trainer.args.learning_rate, trainer.args.warmup_steps = settings["learning_rate"], 0
    return trainer


def _bare(example: Any) -> Any:
    """The example with safety rows that nobody labelled."""
    layout = example.layout
    rows: Sequence[Any] = [replace(row, label=None) for row in layout.safety]
    return replace(example, layout=replace(layout, safety=tuple(rows)))


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
