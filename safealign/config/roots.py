"""One root schema per command, registered so that Hydra checks each composed config against it."""

from __future__ import annotations

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore

from safealign.config.fields import at_least, between, choice, positive
from safealign.config.groups import (
    AdapterConfig,
    AttackConfig,
    DataConfig,
    DecodingConfig,
    DeepspeedConfig,
    DefenseConfig,
    JudgeConfig,
    LoggerConfig,
    ModelConfig,
    ObjectiveConfig,
    PlanConfig,
    RankerConfig,
    SafetyConfig,
    SuiteConfig,
    TrainerConfig,
)


@dataclass(kw_only=True)
class TrainConfig:
    """conf/config.yaml: training, and the commands that share its config (validate, sampling)."""

    name: str
    run_dir: str
    resume: str
    offline: bool
    model: ModelConfig
    data: DataConfig
    objective: ObjectiveConfig
    adapter: AdapterConfig
    trainer: TrainerConfig
    deepspeed: DeepspeedConfig
    safety: SafetyConfig
    ranker: RankerConfig
    decoding: DecodingConfig
    logger: LoggerConfig
    attack: AttackConfig
    judge: JudgeConfig
    suite: SuiteConfig
    defense: DefenseConfig
    baselines: list[str]
    seed: int = at_least(0)


@dataclass(kw_only=True)
class ExportedModel:
    """`model=PATH` of the commands that take an export; `dtype` and `attn` say how to load it."""

    path: str
    dtype: str = choice("auto", "bf16", "fp32")
    attn: str = choice("sdpa", "eager")


@dataclass(kw_only=True)
class EvaluateConfig:
    """conf/evaluate.yaml: measure an export."""

    run_dir: str | None
    offline: bool
    model: ExportedModel
    decoding: DecodingConfig
    attack: AttackConfig
    judge: JudgeConfig
    suite: SuiteConfig
    defense: DefenseConfig
    baselines: list[str]
    seed: int = at_least(0)
    threads: int | None = at_least(1)


@dataclass(kw_only=True)
class ExportConfig:
    """conf/export.yaml: write a run's export again."""

    run: str
    run_dir: str
    merge: bool
    offline: bool
    checkpoint: str | None


@dataclass(kw_only=True)
class ChatConfig:
    """conf/chat.yaml: talk to an export."""

    model: ExportedModel
    decoding: DecodingConfig
    offline: bool
    system: str | None
    forget_refused: bool
    threads: int | None = at_least(1)


@dataclass(kw_only=True)
class ServeConfig:
    """conf/serve.yaml: serve an export over HTTP."""

    model: ExportedModel
    decoding: DecodingConfig
    offline: bool
    host: str
    name: str | None
    api_key_env: str | None
    threads: int | None = at_least(1)
    port: int = between(0, 65535)
    rows: int = at_least(1)
    queue: int = at_least(0)
    max_prompt_tokens: int = at_least(1)
    max_new_tokens: int = at_least(1)
    max_body_bytes: int = at_least(1)
    timeout: float | None = positive()
    verdicts: str = choice("none", "request", "trace")


@dataclass(kw_only=True)
class LaunchConfig:
    """conf/launch.yaml: the cluster that a run is planned for."""

    plan: PlanConfig


@dataclass(kw_only=True)
class SweepConfig:
    """conf/sweep.yaml: the runs of a sweep side by side."""

    folder: str
    system: str


# Root config name (a file in conf/) -> its schema. The store's names are what `defaults` lists first.
ROOTS: dict[str, type] = {
    "config": TrainConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "chat": ChatConfig,
    "serve": ServeConfig,
    "launch": LaunchConfig,
    "sweep": SweepConfig,
}


def register() -> None:
    """Put every root schema into Hydra's ConfigStore; calling it again changes nothing."""
    store = ConfigStore.instance()
    for name, schema in ROOTS.items():
        store.store(name=f"schema_{name}", node=schema, provider="safealign")
