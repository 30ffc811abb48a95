"""The pretraining stage: TRL's trainer on packed documents, L = L_lm + λ·L_cls, the safety token seeing all of each.

Source: Li & Kim, ICML 2025 (arXiv 2505.17072), first stage, λ = 0.01. No text sees the safety token here: there is no
gate to open yet.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from trl import SFTConfig

from safealign.config.roots import TrainConfig
from safealign.data.rendering import Renderer
from safealign.modeling.attach import SafetyParts
from safealign.ranks import current
from safealign.training.checkpoints.keeper import Keeper
from safealign.training.collator import EXAMPLE_KEY, collate_examples
from safealign.training.document_data import COLUMNS, DocumentData
from safealign.training.gathering import equalise
from safealign.training.packing import packed_example
from safealign.training.prepare import TrainingData
from safealign.training.run import (
    TrainedModel,
    attach_from,
    common_arguments,
    remove_progress,
    safety_objective,
    shared_parts,
    start_head,
)
from safealign.training.sft import SafetySFTTrainer
from safealign.training.stage_run import run_stage, sum_up, watch
from safealign.training.stages import PRETRAINING
from safealign.training.tracking import Tracker


class DocumentCollator:
    """Packed rows to the tensors of `SafetyCollator`, their layouts built from the lengths that they carry.

    Rows of validation have a number, by which those are told apart that two ranks judge.
    """

    def __init__(self, placement: str, pad_token_id: int) -> None:
        self.placement, self.pad_token_id = placement, pad_token_id

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        chosen = [packed_example(row, self.placement) for row in rows]
        numbers = [row.get(EXAMPLE_KEY, place) for place, row in enumerate(rows)]
        return collate_examples(chosen, numbers, self.pad_token_id)


class SafetyPretrainingTrainer(SafetySFTTrainer):
    """The SFT trainer on rows of documents."""

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*self._signature_columns, *(c for c in COLUMNS if c not in self._signature_columns)]


def pretrain(
    config: TrainConfig,
    model: Any,
    renderer: Renderer,
    data: DocumentData,
    console: Console,
    tracker: Tracker | None = None,
    keeper: Keeper | None = None,
) -> TrainedModel:
    """Attaches the safety parts, starts the head warm on documents, trains; the model is changed in place.

    `keeper`: as for `fit`. All ranks call it, and end with the same weights.
    """
    started = time.monotonic()
    parts = attach_from(config, model, renderer)
    goes_on = keeper is not None and keeper.resumed is not None
    if data.warm and config.safety.lambda_cls > 0 and not goes_on:
        warm = TrainingData([], [], [], data.warm, [], [])
        current().only_first(lambda: start_head(config, parts, warm, console))
    torch.manual_seed(config.seed)  # the adapter's first weights must not depend on what was done before
    trainer = build_pretrainer(config, model, renderer, data, parts, console)
    equalise(trainer.model, parts)
    totals = [run_stage(trainer, config, PRETRAINING, 0, tracker, keeper)]
    if keeper is None or not keeper.finished:
        sum_up(config, trainer, totals, keeper, console)
    trained: Any = trainer.model
    trained.eval()
    seconds = time.monotonic() - started
    return TrainedModel(trained, parts, trainer.state.log_history, trainer.state.global_step, seconds)


def build_pretrainer(
    config: TrainConfig, model: Any, renderer: Renderer, data: DocumentData, parts: SafetyParts, console: Console
) -> SafetySFTTrainer:
    """The trainer with its data, collator, callbacks and loss."""
    common = common_arguments(config, data.n_rows or 0, data.validation is not None)
    common["train_sampling_strategy"] = "random"  # packed rows are of one length, and a stream has none to ask for
    common["accelerator_config"] = {"dispatch_batches": False}  # a stream has a shard for each rank
    trainer = SafetyPretrainingTrainer(
        args=SFTConfig(**common, dataset_kwargs={"skip_prepare_dataset": True}),
        train_dataset=data.train,
        eval_dataset=data.validation,
        data_collator=DocumentCollator(config.safety.placement, renderer.tokenizer.pad_token_id or 0),
        **shared_parts(config, model, renderer, parts, console),
    )
    trainer.set_safety(parts, safety_objective(config))
    remove_progress(trainer)
    watch(trainer, config)
    return trainer
