"""The trainer of the preference stage, from config and pairs."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from safealign.assets import cache_dir
from safealign.config.roots import TrainConfig
from safealign.modeling.attach import SafetyParts
from safealign.modeling.precision import compute_dtype
from safealign.training.dpo import SafetyDPOTrainer
from safealign.training.pair_examples import PairCollator, pair_dataset
from safealign.training.preparing_pairs import Pairs
from safealign.training.reference_cache import ReferenceCache
from safealign.training.safety_loss import SafetyObjective


def pair_trainer(
    config: TrainConfig,
    pairs: Pairs,
    parts: SafetyParts,
    objective: SafetyObjective,
    common: dict[str, Any],
    shared: dict[str, Any],
    console: Console,
) -> SafetyDPOTrainer:
    """TRL's DPOTrainer with our pairs and loss. The reference's pass over the pairs runs here, or is read from disk.

    `common`: arguments that every stage's TRL config takes; `shared`: those of every stage's trainer.
    """
    from trl import DPOConfig

    dpo, tokenizer = config.objective.dpo, shared["processing_class"]
    everything, n_train = [*pairs.train, *pairs.validation], len(pairs.train)
    arguments = DPOConfig(
        **common,
        loss_type=list(dpo.loss_type),
        loss_weights=dpo.loss_weights,
        beta=dpo.beta,
        label_smoothing=dpo.label_smoothing,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=2 * config.trainer.batch_size,
    )
    console.print("reference: log-probabilities of every pair under the model as it is now", highlight=False)
    trainer = SafetyDPOTrainer(
        args=arguments,
        train_dataset=pair_dataset(pairs.train),
        eval_dataset=pair_dataset(pairs.validation, n_train) if pairs.validation else None,
        data_collator=PairCollator(everything, tokenizer.pad_token_id or 0),
        parts=parts,
        objective=objective,
        sft_weight=dpo.sft_weight,
        cache=reference_cache(config, tokenizer, console),
        **shared,
    )
    trainer.categories = {index: pair.chosen.category for index, pair in enumerate(everything)}
    trainer.example_ids = {index: pair.chosen.id for index, pair in enumerate(everything)}
    return trainer


def reference_cache(config: TrainConfig, tokenizer: Any, console: Console) -> ReferenceCache:
    """Where the reference's log-probabilities lie, and what they depend on beside weights and token ids."""
    context = {
        "template": tokenizer.chat_template,
        "max_length": config.data.max_length,
        "precision": str(compute_dtype(config.trainer.precision)),  # `auto` is another one on another machine
        "attn": config.model.attn,
    }
    return ReferenceCache(cache_dir() / "reference", context, lambda text: console.print(text, highlight=False))
