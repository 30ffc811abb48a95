"""Trainers of the same run in several processes over gloo; each process is a rank, and may be told what befalls it."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from dying_jobs import CONTEXT, NO_ROOM, fail

TESTS = Path(__file__).parent


def load_module(name: str, path: Path) -> ModuleType:
    """A file of tests as a module."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def rank(number: int, world: int, port: int, folder: str, befalls: dict[str, Any], how: dict[str, Any]) -> None:
    """One rank's process. Statuses: 0, 2 after an error with a sentence, 75 after SIGTERM."""
    stream = os.open(f"{folder}/log-{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1), os.dup2(stream, 2)
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "DS_ACCELERATOR": "cpu",
    }
    os._exit(_train(number, world, folder, befalls, **how))


def _train(
    number: int,
    world: int,
    folder: str,
    befalls: dict[str, Any],
    config: dict[str, Any],
    settings: dict[str, Any],
    options: dict[str, Any],
    **fields: Any,
) -> int:
    import torch
    from transformers import TrainerCallback

    from safealign.errors import PreemptedError, SafealignError
    from safealign.training.callbacks.split_head import SplitHead

    kit = load_module("training_kit", TESTS / "training" / "conftest.py").Kit
    jobs = load_module("checkpoint_kit", TESTS / "training" / "checkpoints" / "conftest.py")

    class Befall(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == befalls.get("die"):
                os.kill(os.getpid(), signal.SIGKILL)
            if state.global_step == befalls.get("term"):
                os.kill(os.getpid(), signal.SIGTERM)

    job = jobs.Job(
        kit,
        Path(folder),
        identity=replace(jobs.IDENTITY, world=world, config={**jobs.IDENTITY.config, **settings}),
        options={"per_device_train_batch_size": 2, "ddp_find_unused_parameters": False, "ddp_timeout": 20} | options,
        **fields,
    )
    if config:
        job.config = replace(job.config, trainer=replace(job.config.trainer, **config))
    if "full" in befalls:
        fail(torch, "save", befalls["full"], NO_ROOM)
    try:
        trainer, keeper = job.trainer(Befall(), SplitHead())
        trainer.on_nonfinite = job.config.trainer.on_nonfinite
        _watch(trainer, befalls.get("nan"), Path(folder) / f"rows-{number}")
        jobs.train_stage(trainer, keeper.start_of("sft"), 0)
    except PreemptedError as error:
        print(error)
        return 75
    except SafealignError as error:
        print(f"error: {error}")
        return 2
    torch.save(_weights(trainer.model), f"{folder}/end-{number}.pt")
    return 0


def _weights(model: Any) -> dict[str, Any]:
    """All weights and buffers, gathered where ZeRO-3 has split them."""
    from contextlib import nullcontext

    split = [weight for weight in model.parameters() if hasattr(weight, "ds_id")]
    if split:
        import deepspeed
    with deepspeed.zero.GatheredParameters(split) if split else nullcontext():
        return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _watch(trainer: Any, nan: int | None, counts: Path) -> None:
    """Writes down how many labelled safety rows each batch of training has, and spoils the loss of step `nan`."""
    real = trainer.compute_loss

    def loss(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        rows = int((inputs["safety_labels"] >= 0).sum())
        found = real(model, inputs, *args, **kwargs)
        if not trainer.model.training:
            return found
        with counts.open("a", encoding="utf-8") as stream:
            stream.write(f"{rows}\n")
        return found * float("nan") if trainer.state.global_step == nan else found

    trainer.compute_loss = loss


def run(
    folder: Path,
    world: int = 2,
    config: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    job: dict[str, Any] | None = None,
    **befalls: dict[int, Any],
) -> list[int]:
    """Runs all ranks to their end and returns their statuses; `die={1: 3}` kills rank 1 in its fourth step.

    `config`: changes of the `trainer` group; `settings`: more of the config that its checkpoints say they are of;
    `job`: changes of `Job`'s fields, among them `options`, the trainer's arguments.
    """
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    how = {"options": {}, "config": config or {}, "settings": settings or {}} | (job or {})
    ranks = []
    for number in range(world):
        mine = {name: by_rank[number] for name, by_rank in befalls.items() if number in by_rank}
        ranks.append(CONTEXT.Process(target=rank, args=(number, world, port, str(folder), mine, how)))
        ranks[-1].start()
    for process in ranks:
        process.join(120)
        if process.is_alive():
            process.kill()
            process.join()
    return [int(process.exitcode or 0) for process in ranks]
