"""Which stages a run has, and the settings of each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from safealign.config.roots import TrainConfig

SFT, DPO, PRETRAINING, FROZEN = "sft", "dpo", "pretraining", "frozen"


def stages(config: TrainConfig) -> tuple[str, ...]:
    """The objectives of a run in their order; each starts from what the one before it left.

    A run that leaves the language model frozen has one stage, without a step.
    """
    if config.safety.frozen:
        return (FROZEN,)
    if config.objective.name == DPO and config.objective.dpo.after_sft:
        return SFT, DPO
    return (config.objective.name,)


def of_stage(config: TrainConfig, stage: str) -> TrainConfig:
    """The config with the trainer settings that hold in `stage`."""
    if stage != DPO:
        return config
    dpo = config.objective.dpo
    own: dict[str, Any] = {
        "epochs": dpo.epochs,
        "max_steps": dpo.max_steps,
        "batch_size": dpo.batch_size,
        "gradient_accumulation": dpo.gradient_accumulation,
        "learning_rate": dpo.learning_rate,
        "head_learning_rate": dpo.head_learning_rate,
    }
    given = {name: value for name, value in own.items() if value is not None}
    return replace(config, trainer=replace(config.trainer, **given))
