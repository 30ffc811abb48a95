"""Which stages a run has, and the settings of each."""

from __future__ import annotations

from dataclasses import fields, replace

from safealign.config.groups import TrainerConfig
from safealign.config.roots import TrainConfig

SFT, DPO = "sft", "dpo"


def stages(config: TrainConfig) -> tuple[str, ...]:
    """The objectives of a run in their order; each starts from what the one before it left."""
    if config.objective.name == DPO and config.objective.dpo.after_sft:
        return SFT, DPO
    return (config.objective.name,)


def of_stage(config: TrainConfig, stage: str) -> TrainConfig:
    """The config with the trainer settings that hold in `stage`."""
    if stage != DPO:
        return config
    names = {spec.name for spec in fields(TrainerConfig)} & {spec.name for spec in fields(config.objective.dpo)}
    own = {name: value for name in names if (value := getattr(config.objective.dpo, name)) is not None}
    return replace(config, trainer=replace(config.trainer, **own))
