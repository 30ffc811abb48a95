"""The configuration: schema, files, and what is said about a mistake. `compose` is the door."""

from __future__ import annotations

from safealign.config.composing import compose, load_option, to_yaml
from safealign.config.groups import (
    AdapterConfig,
    AttackConfig,
    DataConfig,
    DecodingConfig,
    DefenseConfig,
    LoggerConfig,
    ModelConfig,
    SafetyConfig,
    SourceConfig,
    SuiteConfig,
    TrainerConfig,
)
from safealign.config.overrides import conf_dir
from safealign.config.roots import ChatConfig, EvaluateConfig, ExportConfig, TrainConfig

__all__ = [
    "AdapterConfig",
    "AttackConfig",
    "ChatConfig",
    "DataConfig",
    "DecodingConfig",
    "DefenseConfig",
    "EvaluateConfig",
    "ExportConfig",
    "LoggerConfig",
    "ModelConfig",
    "SafetyConfig",
    "SourceConfig",
    "SuiteConfig",
    "TrainConfig",
    "TrainerConfig",
    "compose",
    "conf_dir",
    "load_option",
    "to_yaml",
]
