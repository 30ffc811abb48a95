"""The schema of every config group: names, types and limits; the values stand in `conf/` alone.

A field without a default must be given by a file of its group. Every key is explained where its value is,
in the YAML file. Hydra checks names and types against these classes, `fields.problems_of` the limits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from safealign.config.fields import at_least, between, choice, positive, probability_or


@dataclass(kw_only=True)
class ModelConfig:
    """conf/model: which causal LM, and how it is loaded."""

    name: str
    path: str
    architecture: str | None = choice(
        "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi", "phi3", "gpt_neox", "olmo2"
    )
    dtype: str = choice("auto", "bf16", "fp32")
    attn: str = choice("sdpa", "eager")
    chat_template: str | None


@dataclass(kw_only=True)
class SourceConfig:
    """One source of records: an asset, a hub data set or a local file."""

    source: str
    part: str = choice("all", "train", "test", default="all")
    split: str = "train"
    fields: dict[str, str] = field(default_factory=dict)
    limit: int | None = None
    label: str | None = choice("benign", "malicious", default=None)


@dataclass(kw_only=True)
class LeakCheckConfig:
    """data.leak_check: no evaluation prompt in the training data."""

    enabled: bool
    threshold: float = between(0, 1)
    action: str = choice("drop", "error")


@dataclass(kw_only=True)
class MixConfig:
    """data.mix: what the rules derive from the records."""

    styles: list[str] | None
    per_style: int = at_least(0)
    wrapped: int = at_least(0)
    wrapper_words: int | None = at_least(1)
    held_out_templates: float = between(0, 1)
    about: int = at_least(0)
    homonyms: int = at_least(0)
    intents: int = at_least(0)
    people: int = at_least(0)
    falsehoods: int = at_least(0)
    later_turns: int = at_least(0)
    restyle_max_chars: int = at_least(1)
    balance: bool
    limit: int | None = at_least(1)


@dataclass(kw_only=True)
class SamplingConfig:
    """data.sampling: what the undefended model writes itself."""

    everyday: int = at_least(0)
    everyday_max_new_tokens: int = at_least(1)
    compliant: int = at_least(0)
    compliant_max_new_tokens: int = at_least(1)
    answers: int = at_least(0)
    answers_max_new_tokens: int = at_least(1)
    distilled: int = at_least(0)
    distilled_max_new_tokens: int = at_least(1)
    deep: int = at_least(0)
    deep_max_new_tokens: int = at_least(1)
    deep_chunk: int = at_least(8)
    deep_repetition_penalty: float = positive()
    splices: int = at_least(0)
    benign_splices: int = at_least(0)
    splice_opening: int = at_least(1)
    guard: str = choice("none", "rules", "probe")
    guard_threshold: float = between(0, 1)
    batch_size: int = at_least(1)
    temperature: float = at_least(0)
    top_k: int = at_least(0)
    seed: int = at_least(0)


@dataclass(kw_only=True)
class PreferencesConfig:
    """data.preferences: the pairs of objective=dpo."""

    sources: list[SourceConfig]
    refusals: int = at_least(0)
    answers: int = at_least(0)


@dataclass(kw_only=True)
class DocumentsConfig:
    """data.documents: raw text for objective=pretraining."""

    sources: list[SourceConfig]
    streaming: bool
    shuffle_buffer: int = at_least(0)
    packing: bool
    guard: str
    malicious_from: float = between(0, 1)
    benign_up_to: float = between(0, 1)
    warm: int = at_least(0)
    validation: int = at_least(0)


@dataclass(kw_only=True)
class DataConfig:
    """conf/data: what is trained on and what must stay unseen."""

    name: str
    path: str | None
    sources: list[SourceConfig]
    calibration: list[SourceConfig]
    evaluation: list[str]
    leak_check: LeakCheckConfig
    mix: MixConfig
    sampling: SamplingConfig
    preferences: PreferencesConfig
    documents: DocumentsConfig
    refusals: int = at_least(0)
    benign_answers: int = at_least(0)
    harmful_answers: int = at_least(0)
    transitions: int = at_least(0)
    prompts: int = at_least(0)
    warm_answers: int = at_least(0)
    val_fraction: float = between(0, 0.9)
    max_length: int = at_least(16)


# Every loss type of TRL's DPOTrainer.
PREFERENCE_LOSSES = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
)


@dataclass(kw_only=True)
class DPOConfig:
    """objective.dpo: preference training."""

    after_sft: bool
    loss_weights: list[float] | None
    loss_type: list[str] = choice(*PREFERENCE_LOSSES)
    beta: float = positive()
    label_smoothing: float = between(0, 0.5)
    sft_weight: float = at_least(0)
    epochs: float | None = positive()
    max_steps: int | None = at_least(-1)
    batch_size: int | None = at_least(1)
    gradient_accumulation: int | None = at_least(1)
    learning_rate: float | None = positive()
    head_learning_rate: float | None = positive()


@dataclass(kw_only=True)
class ObjectiveConfig:
    """conf/objective: the loss on the text itself."""

    dpo: DPOConfig
    name: str = choice("sft", "dpo", "pretraining", "srr")


@dataclass(kw_only=True)
class AdapterConfig:
    """conf/adapter: which of the LM's weights are trained."""

    name: str = choice("lora", "dora", "rslora", "qlora", "none")
    r: int = at_least(1)
    alpha: int = at_least(1)
    dropout: float = between(0, 1)
    target_modules: str | None
    dora: bool
    rslora: bool
    quantization: str | None = choice("nf4", "fp4")
    double_quantization: bool


@dataclass(kw_only=True)
class TrainerConfig:
    """conf/trainer: the optimisation."""

    epochs: float = positive()
    max_steps: int = at_least(-1)
    batch_size: int = at_least(1)
    gradient_accumulation: int = at_least(1)
    packing: int | None = at_least(1)
    learning_rate: float = positive()
    head_learning_rate: float = positive()
    weight_decay: float = at_least(0)
    warmup_ratio: float = between(0, 1)
    max_grad_norm: float = positive()
    scheduler: str = choice("linear", "cosine", "constant", "constant_with_warmup")
    eval_steps: float = positive()
    logging_steps: int = at_least(1)
    precision: str = choice("auto", "bf16", "fp32")
    save_steps: float | None = positive()
    keep_last: int = at_least(1)
    keep_best: str | None
    on_nonfinite: str = choice("stop", "skip")
    stall_timeout: float = positive()
    gradient_checkpointing: bool
    threads: int | None = at_least(1)


@dataclass(kw_only=True)
class DeepspeedConfig:
    """conf/deepspeed: the DeepSpeed settings, or none."""

    name: str
    config: dict[str, Any] | None


@dataclass(kw_only=True)
class PlanConfig:
    """conf/plan: the cluster that `safealign.launch` plans for, and what it assumes of it."""

    name: str
    nodes: int = at_least(1)
    gpus: int = at_least(1)
    memory_gb: float = positive()
    overhead_gb: float = at_least(0)
    tflops_bf16: float = positive()
    tflops_fp32: float = positive()
    utilisation: float = between(0.001, 1)
    link_gbs: float = positive()
    network_gbs: float = positive()
    examples: int | None = at_least(1)
    safety_rows: int = at_least(0)
    scored_share: float = between(0, 1)


@dataclass(kw_only=True)
class HeadConfig:
    """safety.head: where the safety head reads."""

    layers: list[float] = between(0, 1)
    pool: list[str] = choice("row", "mean", "last")
    separate_windows: bool
    refit: bool
    window_pool: list[str] | None = choice("row", "mean", "last")
    kind: str = choice("logistic", "prototype", default="logistic")
    token_layers: list[float] = between(0, 1)


@dataclass(kw_only=True)
class WindowsConfig:
    """safety.windows: probes over parts of the answer."""

    sees_query: bool
    length: int = at_least(1)
    per_answer: int = at_least(0)


@dataclass(kw_only=True)
class GateConfig:
    """safety.gate: when text may attend to the safety token in training."""

    closed_share: float = between(0, 1)
    follow_windows: float = between(0, 1)


@dataclass(kw_only=True)
class CalibrationConfig:
    """safety.calibration: thresholds with a bound on false refusals."""

    units: int = at_least(0)
    answered: int = at_least(0)
    budget: float = between(0, 1)
    window_share: float = between(0.05, 0.95)
    error_probability: float = between(0, 1)
    wake_rate: float = between(0, 1)
    max_new_tokens: int = at_least(1)


@dataclass(kw_only=True)
class SafetyConfig:
    """conf/safety: safety token, head, windows and how they are trained."""

    head: HeadConfig
    windows: WindowsConfig
    gate: GateConfig
    calibration: CalibrationConfig
    trigger: str
    refusal_categories: bool
    warm_start: bool
    frozen: bool = False
    lambda_cls: float = at_least(0)
    placement: str = choice("append", "prepend")
    init: str = choice("mean", "assistant_role")
    recovery_share: float = between(0, 1)
    recovery_max_prefix: int = at_least(3)
    label_smoothing: float = between(0, 0.5)
    pos_weight: float | None = positive()


@dataclass(kw_only=True)
class DecodingConfig:
    """conf/decoding: the rules at inference; each key is also a keyword of `SafeModel.generate`."""

    safety: bool
    gate: bool
    refusal: str
    schedule: str = choice("first", "periodic", "annealing", "every", "cascade")
    interval: int = at_least(1)
    floor: int = at_least(1)
    dependency: str = choice("low", "medium", "high")
    tau: int = between(1, 3)
    r1: int = at_least(0)
    r2: int = at_least(1)
    r3: int = at_least(1)
    theta_query: Any = probability_or("calibrated")
    theta_window: Any = probability_or("calibrated")
    theta_prefix: Any = probability_or("calibrated")
    theta_token: Any = probability_or("calibrated")
    cache: str = choice("dynamic", "static")
    prefill_chunk: int = at_least(1)
    fused: bool
    max_new_tokens: int = at_least(1)
    min_new_tokens: int = at_least(0)
    temperature: float = at_least(0)
    top_p: float = between(0, 1)
    top_k: int = at_least(0)
    min_p: float = between(0, 1)
    repetition_penalty: float = positive()
    stop: list[str]
    seed: int | None = at_least(0)


@dataclass(kw_only=True)
class CandidatesConfig:
    """ranker.candidates: the answers that a ranker learns from."""

    malicious: int = at_least(1)
    benign: int = at_least(0)
    direct: int = at_least(0)
    wrapped: int = at_least(0)
    prefilled: int = at_least(0)
    declined: int = at_least(0)
    prefill_tokens: int = at_least(1)
    max_new_tokens: int = at_least(1)
    temperature: float = positive()
    top_p: float = between(0, 1)
    batch_size: int = at_least(1)
    seed: int = at_least(0)


@dataclass(kw_only=True)
class RankerFitConfig:
    """ranker.fit: its training on cached states."""

    list_length: int = at_least(2)
    draws: int = at_least(1)
    batch_size: int = at_least(1)
    epochs: int = at_least(1)
    patience: int = at_least(1)
    learning_rate: float = positive()
    weight_decay: float = at_least(0)
    max_grad_norm: float = positive()


@dataclass(kw_only=True)
class RankerConfig:
    """conf/ranker: who chooses among several answers, for objective=srr."""

    name: str
    candidates: CandidatesConfig
    fit: RankerFitConfig
    kind: str = choice("listwise", "pointwise")
    layer: float = between(0, 1)
    pool: str = choice("last", "mean")
    hidden: int = at_least(1)
    heads: int = at_least(1)
    dropout: float = between(0, 0.9)
    tau: float = positive()
    judge: str = choice("rules", "keywords", "probe")
    judge_threshold: float = between(0, 1)


@dataclass(kw_only=True)
class LoggerConfig:
    """conf/logger: where metrics go beside `metrics.jsonl`."""

    name: str = choice("none", "wandb", "tensorboard")
    project: str | None
    mode: str = choice("auto", "online", "offline")


@dataclass(kw_only=True)
class AttackConfig:
    """conf/attack: the attacks that an evaluation runs."""

    name: str
    attacks: list[str] = choice("direct", "second_turn", "prefill")
    prefill_tokens: list[int] = at_least(1)


@dataclass(kw_only=True)
class JudgeConfig:
    """conf/judge: who decides whether an answer refuses."""

    name: str = choice("refusal_matcher")


@dataclass(kw_only=True)
class PromptCounts:
    """suite.prompts: how many prompts of each kind."""

    harmful: int = at_least(0)
    benign: int = at_least(0)
    over_refusal: int = at_least(0)
    everyday: int = at_least(0)
    held_out: int = at_least(0)


@dataclass(kw_only=True)
class SuiteConfig:
    """conf/suite: what an evaluation measures, on how many prompts, beside which rows."""

    name: str
    prompts: PromptCounts
    ablations: dict[str, Any]
    max_new_tokens: int = at_least(1)
    batch_size: int = at_least(1)
    head_baselines: list[str] = choice("minilm", "frozen", "prototype")


@dataclass(kw_only=True)
class DefenseConfig:
    """conf/defense: a system that stands beside ours in the table."""

    name: str
    training: list[str]
    kind: str = choice("none", "base", "trained")
    export: str | None
