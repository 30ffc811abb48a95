"""One stage: from its start, from a checkpoint within it, or not at all where it is over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState, set_seed
from transformers.trainer_utils import SaveStrategy

from safealign.errors import CheckpointError, PreemptedError, SafealignError
from safealign.training.callbacks.preemption import Preemption
from safealign.training.callbacks.with_saves import WithSaves
from safealign.training.checkpoints.full_disk import full_disk
from safealign.training.checkpoints.keeper import STATE_FILE, Keeper
from safealign.training.checkpoints.no_code import refuse_code
from safealign.training.checkpoints.store import Found, step_name

_NEVER = 10**9


def enable(trainer: Any, keeper: Keeper, stage: str, first_step: int) -> None:
    """Lets a stage's trainer write checkpoints every `trainer.save_steps` and at its end.

    `first_step`: steps of the stages before it. The first trainer of a run makes the folder ready.
    """
    trainer.keeper = keeper.of_stage(stage, first_step)
    trainer.args.save_strategy = SaveStrategy.STEPS
    every = keeper.config.trainer.save_steps
    # A share is of the stage's own steps, which transformers counts; null: far past its end, where it saves anyway.
    trainer.args.save_steps = _NEVER if every is None else every if every < 1 else int(every)
    if not first_step:
        agree(trainer, keeper.resumed)
        if trainer.accelerator.is_main_process:
            keeper.clear()
        trainer.accelerator.wait_for_everyone()
    trainer.add_callback(WithSaves(trainer.keeper.keeping.metric))


def train_stage(trainer: Any, found: Found | None, seed: int) -> None:
    """Trains, from `found` if there is one; a stage that is over there only gets its weights and state.

    Raises PreemptedError after SIGTERM, CheckpointError for a full disk and a checkpoint that cannot be loaded.
    """
    if found is not None:
        refuse_code(found.path)
        trainer._total_train_tokens = trainer._tokens_before = found.note["tokens"]
    if found is not None and found.note["stage_done"]:
        trainer._load_from_checkpoint(str(found.path))
        trainer.state = TrainerState.load_from_json(str(found.path / STATE_FILE))
        return
    set_seed(seed)  # whatever was drawn before, the reference's pass over the pairs for one
    preemption = Preemption()
    trainer.add_callback(preemption)
    try:
        _run(trainer, found)
    except SafealignError:
        _close(trainer)
        raise
    except OSError as error:
        _close(trainer)
        if full_disk(error) is None:
            raise
        raise CheckpointError(_full(trainer, error)) from error
    trainer.remove_callback(preemption)
    if preemption.asked:
        step = trainer.state.global_step + (trainer.keeper.first_step if trainer.keeper else 0)
        raise PreemptedError(
            f"stopped by SIGTERM at step {step}, which is saved; the same command goes on from there (status 75)"
        )


def _run(trainer: Any, found: Found | None) -> None:
    if found is None:
        trainer.train()
        return
    trainer.args.eval_on_start = False
    trainer.train(resume_from_checkpoint=str(found.path))


def _close(trainer: Any) -> None:
    """Lets callbacks end what they began: the progress line, the logger, the signal."""
    trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)


def _full(trainer: Any, error: OSError) -> str:
    folder = Path(trainer.args.output_dir)
    where = error.filename or folder.parent
    return (
        f"training stopped: the disk is full ({where} could not be written); the checkpoints in {folder} are as they "
        "were. Make room and run the same command again: it goes on from there"
    )


def agree(trainer: Any, found: Found | None) -> None:
    """Raises CheckpointError where ranks found different checkpoints: they do not see the same folder."""
    accelerator = trainer.accelerator
    if accelerator.num_processes == 1:
        return
    steps = accelerator.gather(torch.tensor([-1 if found is None else found.step], device=accelerator.device)).tolist()
    if len(set(steps)) > 1:
        seen = ", ".join(f"rank {rank}: {step_name(s) if s >= 0 else 'none'}" for rank, s in enumerate(steps))
        raise CheckpointError(f"the ranks do not see the same checkpoints ({seen}): run_dir must be on a shared disk")
