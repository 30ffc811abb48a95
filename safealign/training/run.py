"""One training run: warm start, its stages one after the other; calibration, export and table are the command's."""

from __future__ import annotations

import copy
import inspect
import math
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from safealign.config.roots import TrainConfig
from safealign.data.rendering import Renderer
from safealign.errors import ConfigError
from safealign.modeling.attach import HEAD_NAME, TOKEN_NAME, SafetyParts, attach
from safealign.modeling.exporting import merged
from safealign.modeling.precision import compute_dtype
from safealign.ranks import current, world_size
from safealign.training.callbacks.metrics_file import MetricsFile
from safealign.training.callbacks.progress import ProgressLine
from safealign.training.callbacks.pulse import Pulse
from safealign.training.callbacks.split_head import SplitHead
from safealign.training.carrying import carry, learnt_readouts
from safealign.training.checkpoints.keeper import Keeper
from safealign.training.checks import head_settings
from safealign.training.collator import LENGTH_KEY, SafetyCollator
from safealign.training.dpo import SafetyDPOTrainer, forget_reference
from safealign.training.gathering import equalise, gather, hand_back
from safealign.training.kept_examples import Joined
from safealign.training.memory import release
from safealign.training.pair_stage import pair_trainer
from safealign.training.prepare import TrainingData
from safealign.training.preparing_pairs import Pairs
from safealign.training.safety_loss import SafetyObjective
from safealign.training.sft import SafetySFTTrainer, example_dataset
from safealign.training.stage_run import run_stage, sum_up, watch
from safealign.training.stages import DPO, SFT, of_stage, stages
from safealign.training.token_head import fit_token_head
from safealign.training.totals import StageTotals
from safealign.training.tracking import Tracker
from safealign.training.warm_start import refit_windows, warm_start


@dataclass
class TrainedModel:
    """What training hands on: the (PEFT-wrapped) model, its safety parts and the trainer's log."""

    model: Any
    parts: SafetyParts
    history: list[dict[str, float]]
    steps: int
    seconds: float


def fit(
    config: TrainConfig,
    model: Any,
    renderer: Renderer,
    data: TrainingData,
    console: Console,
    tracker: Tracker | None = None,
    keeper: Keeper | None = None,
) -> TrainedModel:
    """Attaches the safety parts, starts the head warm, trains; the model is changed in place.

    `keeper` writes checkpoints and knows the one to go on from, which makes up for all that came before it; without
    one nothing is saved.
    """
    started = time.monotonic()
    parts = attach_from(config, model, renderer)
    trains_head = config.safety.lambda_cls > 0
    goes_on = keeper is not None and keeper.resumed is not None
    if data.warm and trains_head and not goes_on:
        current().only_first(lambda: start_head(config, parts, data, console))
    torch.manual_seed(config.seed)  # the adapter's first weights must not depend on what was sampled before
    trained, history, steps = model, [], 0
    totals: list[StageTotals] = []
    finished = keeper is not None and keeper.finished
    # Of a run that was over, one trainer is enough to put the adapter in place and load everything.
    order = stages(config)[:1] if finished else stages(config)
    for stage in order:
        if len(order) > 1:
            console.print(f"stage: {stage}", highlight=False)
        trainer = build_trainer(config, trained, renderer, data, parts, console, stage)
        equalise(trainer.model, parts)
        totals.append(run_stage(trainer, config, stage, steps, tracker, keeper))
        trained = trainer.model
        history += trainer.state.log_history
        steps = keeper.resumed.step if finished else steps + trainer.state.global_step  # type: ignore[union-attr]
        if stage != order[-1]:
            del trainer  # with its optimiser, before the next one makes its own
            release()
    forget_reference(trained)
    saved = keeper.nothing_left() if keeper is not None else None
    trained, whole = gather(config, trainer, parts, renderer, saved)
    trained.eval()
    if finished:
        return TrainedModel(trained, whole, history, steps, time.monotonic() - started)
    sum_up(config, trainer, totals, keeper, console)
    if trains_head and current().only_first(lambda: refit_head(config, trained, whole, data, console)):
        hand_back(parts, whole)
        # DeepSpeed evaluates with the engine of a training only.
        if trainer.eval_dataset is not None and not (saved and trainer.is_deepspeed_enabled):
            trainer.evaluate()
        trained.eval()
    if trains_head and current().first:
        start_token_head(config, trained, whole, data, console)
    return TrainedModel(trained, whole, history, steps, time.monotonic() - started)


def start_head(config: TrainConfig, parts: SafetyParts, data: TrainingData, console: Console) -> bool:
    """The warm start; where windows are fitted again after training, a third of their answers does for it."""
    console.print("warm start: reading the frozen model's states", highlight=False)
    autocast = compute_dtype(config.trainer.precision)
    answered = data.warm_answers[::3] if _refits(config) else data.warm_answers
    keep = learnt_readouts(parts)
    if keep:
        console.print("  the head goes on from what it learnt before", highlight=False)
    warm_start(parts, data.warm, answered, autocast=autocast, fit=config.safety.warm_start, keep=keep)
    return True


def refit_head(config: TrainConfig, trained: Any, parts: SafetyParts, data: TrainingData, console: Console) -> bool:
    """Fits the windows' read-out on the trained model's states, as `safety.head.refit` asks; whether it did."""
    if not _refits(config):
        return False
    release()
    console.print("windows: fitting their read-out again, on the trained model's states", highlight=False)
    with merged(trained):
        return refit_windows(parts, data.warm_answers, autocast=compute_dtype(config.trainer.precision))


def start_token_head(
    config: TrainConfig, trained: Any, parts: SafetyParts, data: TrainingData, console: Console
) -> None:
    """Fits the token head on the trained model's states, on every other of the answers that windows are fitted on."""
    if parts.token_head is None:
        return
    release()
    console.print("token head: fitting it on the trained model's states", highlight=False)
    with merged(trained):
        autocast = compute_dtype(config.trainer.precision)
        if not fit_token_head(parts, data.warm_answers[::2], autocast=autocast):
            console.print("  too few labelled answers: it stays at zero, and schedule=cascade has nothing to go by")


def _refits(config: TrainConfig) -> bool:
    return config.safety.head.refit and config.safety.head.separate_windows


def attach_from(config: TrainConfig, model: Any, renderer: Renderer) -> SafetyParts:
    """Attaches safety token and head as the config's `safety` group says, or as the export has them it starts from."""
    role_ids = renderer.content_ids("assistant")
    parts = attach(model, head_settings(config), config.safety.init, role_ids)
    carry(config, parts)
    return parts


def build_trainer(
    config: TrainConfig,
    model: Any,
    renderer: Renderer,
    data: TrainingData,
    parts: SafetyParts,
    console: Console,
    stage: str = SFT,
) -> SafetySFTTrainer | SafetyDPOTrainer:
    """TRL's trainer of a stage with our data, collator, callbacks and loss; the adapter is made by TRL from its config.

    `model`: the causal LM, or the PEFT model that the stage before left.
    """
    config, several = of_stage(config, stage), len(stages(config)) > 1
    rows: Pairs | TrainingData = data.pairs if stage == DPO else data
    common = common_arguments(config, len(rows.train), bool(rows.validation), stage if several else "")
    shared = shared_parts(config, model, renderer, parts, console, {"stage": stage} if several else None)
    trainer: SafetySFTTrainer | SafetyDPOTrainer
    if stage == DPO:
        trainer = pair_trainer(config, data.pairs, parts, safety_objective(config), common, shared, console)
    else:
        trainer = _sft_trainer(data, parts, safety_objective(config), common, shared)
    remove_progress(trainer)
    watch(trainer, config)
    return trainer


def shared_parts(
    config: TrainConfig,
    model: Any,
    renderer: Renderer,
    parts: SafetyParts,
    console: Console,
    tags: dict[str, str] | None = None,
) -> dict[str, Any]:
    """What every objective's trainer is made with: model, tokenizer, adapter and callbacks; `tags` go to every row of
    `metrics.jsonl`.
    """
    say = partial(console.print, highlight=False)
    return {
        "model": model,
        "processing_class": renderer.tokenizer,
        "peft_config": None if hasattr(model, "peft_config") else adapter_config(config, parts),
        "callbacks": [
            ProgressLine(console),
            MetricsFile(Path(config.run_dir) / "metrics.jsonl", tags),
            SplitHead(),
            Pulse(Path(config.run_dir) / "ranks", config.trainer.stall_timeout, say),
        ],
    }


def safety_objective(config: TrainConfig) -> SafetyObjective:
    """The safety loss as the config weighs it."""
    return SafetyObjective(
        config.safety.lambda_cls,
        config.safety.pos_weight,
        config.safety.label_smoothing,
        config.trainer.head_learning_rate,
    )


def remove_progress(trainer: Any) -> None:
    """Takes away the library's own progress lines."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)


def _sft_trainer(
    data: TrainingData,
    parts: SafetyParts,
    objective: SafetyObjective,
    common: dict[str, Any],
    shared: dict[str, Any],
) -> SafetySFTTrainer:
    from trl import SFTConfig

    everything = Joined(data.train, data.validation)
    n_train, pad = len(data.train), shared["processing_class"].pad_token_id or 0
    trainer = SafetySFTTrainer(
        args=SFTConfig(**common, dataset_kwargs={"skip_prepare_dataset": True}),
        train_dataset=example_dataset(data.train),
        eval_dataset=example_dataset(data.validation, n_train) if data.validation else None,
        data_collator=SafetyCollator(everything, pad),
        **shared,
    )
    trainer.set_safety(parts, objective)
    trainer.categories = {index: example.category for index, example in enumerate(everything)}
    trainer.example_ids = {index: example.id for index, example in enumerate(everything)}
    return trainer


def adapter_config(config: TrainConfig, parts: SafetyParts) -> Any:
    """PEFT's LoRA config over every linear layer of the decoder, the safety parts trained whole; None for full."""
    if config.adapter.name == "none":
        return None
    from peft import LoraConfig

    names = sorted({n.split(".")[-1] for n, m in parts.decoder.named_modules() if isinstance(m, torch.nn.Linear)})
    wanted = config.adapter.target_modules
    targets: list[str] | str = names if wanted in (None, "all-linear") else str(wanted)
    return LoraConfig(
        r=config.adapter.r,
        lora_alpha=config.adapter.alpha,
        lora_dropout=config.adapter.dropout,
        use_dora=config.adapter.dora,
        use_rslora=config.adapter.rslora,
        target_modules=targets,
        modules_to_save=[TOKEN_NAME, HEAD_NAME],
        task_type="CAUSAL_LM",
    )


def common_arguments(config: TrainConfig, n_examples: int, evaluates: bool, folder: str = "") -> dict[str, Any]:
    """What TRL's configs of every stage share, from the `trainer` group; `folder` keeps logs of stages apart."""
    from trl import SFTConfig

    t = config.trainer
    dtype = compute_dtype(t.precision)
    steps = planned_steps(config, n_examples)
    # Rounded up: the last share must not end a step or two before the run, which is evaluated at its end as well.
    eval_steps = max(1, math.ceil(t.eval_steps * steps)) if t.eval_steps < 1 else int(t.eval_steps)
    # Its name changed from one release of transformers to the next.
    new = "activation_checkpointing" in inspect.signature(SFTConfig).parameters
    checkpointing: dict[str, Any] = {("activation" if new else "gradient") + "_checkpointing": t.gradient_checkpointing}
    return dict(
        output_dir=str(Path(config.run_dir) / "checkpoints"),
        per_device_train_batch_size=t.batch_size,
        per_device_eval_batch_size=2 * t.batch_size,
        gradient_accumulation_steps=t.gradient_accumulation,
        num_train_epochs=t.epochs,
        max_steps=t.max_steps,
        learning_rate=t.learning_rate,
        weight_decay=t.weight_decay,
        warmup_steps=round(t.warmup_ratio * steps),
        max_grad_norm=t.max_grad_norm,
        lr_scheduler_type=t.scheduler,
        logging_steps=t.logging_steps,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=eval_steps,
        eval_on_start=evaluates,
        save_strategy="no",
        report_to=_reporters(config, folder),
        run_name=config.name,
        seed=config.seed,
        bf16=dtype is torch.bfloat16,
        use_cpu=not torch.cuda.is_available(),
        ddp_backend="gloo" if world_size() > 1 and not torch.cuda.is_available() else None,
        # Every trained weight has a part in every batch, and searching for those without one costs time.
        ddp_find_unused_parameters=False,
        log_level_replica="error",
        max_length=None,
        prediction_loss_only=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        # Prompts alone are much shorter than answers: batches of one length compute less padding.
        train_sampling_strategy="group_by_length",
        length_column_name=LENGTH_KEY,
        deepspeed=copy.deepcopy(config.deepspeed.config),  # its `auto`s are filled in place
        **checkpointing,
    )


def planned_steps(config: TrainConfig, n_examples: int) -> int:
    """Optimiser steps of a run."""
    if config.trainer.max_steps > 0:
        return config.trainer.max_steps
    batches = -(-n_examples // (config.trainer.batch_size * world_size()))
    return max(1, round(config.trainer.epochs * max(1, batches // config.trainer.gradient_accumulation)))


def _reporters(config: TrainConfig, folder: str) -> str:
    if config.logger.name == "tensorboard":
        # Without it the callback writes among the checkpoints.
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(Path(config.run_dir).resolve() / "tensorboard" / folder)
    # W&B's run outlives the trainer: `tracking` owns it.
    return "none" if config.logger.name == "wandb" else config.logger.name


def require_examples(config: TrainConfig, data: TrainingData) -> None:
    """Raises ConfigError when there is nothing to train on."""
    if SFT in stages(config) and not data.train:
        raise ConfigError("no training examples are left: look at data.sources, data.val_fraction and the leak check")
