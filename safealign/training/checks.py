"""What cannot work together in a config, or with the data at hand: found before anything is trained."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from safealign.config.composing import load_option
from safealign.config.fields import suggestion
from safealign.config.overrides import options_of
from safealign.config.roots import TrainConfig
from safealign.data.records import BENIGN, LABELS, Record
from safealign.data.styles import STYLES
from safealign.decoding.options import CALIBRATED, DecodingOptions
from safealign.errors import ConfigError, SafealignError
from safealign.modeling.checkpoint import CARD_FILE
from safealign.modeling.safety_token import HeadSettings
from safealign.ranks import world_size
from safealign.ranks.compiling import missing_compiler
from safealign.training.frozen_problems import frozen_problems
from safealign.training.stages import SFT, stages

_SMOOTHED = {"robust", "exo_pair", "aot", "aot_unpaired"}  # preference losses that read label_smoothing
THETAS = ("theta_query", "theta_window", "theta_prefix")


def config_problems(config: TrainConfig) -> list[str]:
    """Every combination of settings that a run would fail or be meaningless with, one line each."""
    always = [
        *_head_problems(config),
        *_adapter_problems(config),
        *_decoding_problems(config),
        *_rank_problems(config),
        *_trainer_problems(config),
        *frozen_problems(config),
    ]
    if config.objective.name == "pretraining":
        return [*always, *_document_problems(config)]
    return [
        *always,
        *_window_problems(config),
        *_style_problems(config),
        *_preference_problems(config),
        *_table_problems(config),
    ]


def config_notes(config: TrainConfig) -> list[str]:
    """Settings that work, but perhaps not as meant."""
    safety, notes = config.safety, []
    if safety.windows.per_answer and safety.windows.length != config.decoding.r2:
        notes.append(
            f"windows are trained on {safety.windows.length} tokens (safety.windows.length) and looked at with "
            f"{config.decoding.r2} (decoding.r2)"
        )
    if safety.gate.closed_share == 1.0 and config.decoding.gate and safety.lambda_cls > 0:
        notes.append("safety.gate.closed_share=1: no text sees the safety token in training, but decoding.gate is true")
    dpo = config.objective.dpo
    if config.objective.name == "dpo" and dpo.label_smoothing and not set(dpo.loss_type) & _SMOOTHED:
        notes.append("objective.dpo.label_smoothing: none of the loss types uses it")
    notes += _sampling_notes(config)
    if safety.lambda_cls == 0 and config.suite.name != "none" and config.objective.name != "pretraining":
        notes.append("safety.lambda_cls=0 trains no verdict: the table shows the model without rules")
    if config.trainer.packing and SFT not in stages(config):
        notes.append("trainer.packing packs fine-tuning examples, and this objective has none: it does nothing")
    if not config.data.leak_check.enabled:
        notes.append("data.leak_check.enabled=false: figures on evaluation sets may be flattered")
    return notes


def _sampling_notes(config: TrainConfig) -> list[str]:
    """What is sampled, but never seen by training."""
    data, sampling, notes = config.data, config.data.sampling, []
    if sampling.deep and sampling.deep_max_new_tokens >= data.max_length:
        notes.append(
            f"data.sampling.deep asks for answers of {sampling.deep_max_new_tokens} tokens, and examples are cut at "
            f"data.max_length={data.max_length}, prompt included"
        )
    if (sampling.splices or sampling.benign_splices) and not data.transitions and not data.warm_answers:
        notes.append("data.sampling.splices: trained on as data.transitions and data.warm_answers, which are both 0")
    return notes


def data_problems(config: TrainConfig, requests: Sequence[Record], calibration: Sequence[Record]) -> list[str]:
    """What the data at hand cannot carry: a verdict without both labels, thresholds without units."""
    if config.safety.lambda_cls == 0:
        return []
    problems = []
    missing = [label for label in LABELS if not any(record.label == label for record in requests)]
    if missing:
        problems.append(
            f"data.sources: no {' and no '.join(missing)} request is left to train the verdict on: add records with "
            f"that label, or set safety.lambda_cls=0 for plain fine-tuning"
        )
    if not calibration and any(getattr(config.decoding, theta) == CALIBRATED for theta in THETAS):
        problems.append(
            "no unit is left to calibrate thresholds on (benign requests with an answer; a third of them, at most "
            f"safety.calibration.units={config.safety.calibration.units}): add some, or give decoding.theta_query, "
            "theta_window and theta_prefix as probabilities"
        )
    return problems


def model_problems(config: TrainConfig, model: Any) -> list[str]:
    """Settings that do not fit this model."""
    pattern = config.adapter.target_modules
    if config.adapter.name == "none" or pattern in (None, "all-linear"):
        return []
    try:
        if any(re.fullmatch(str(pattern), name) for name, _ in model.named_modules()):
            return []
    except re.error as error:
        return [f"adapter.target_modules={pattern}: is no regular expression ({error})"]
    return [f"adapter.target_modules={pattern}: matches no module of the model; all-linear takes every linear layer"]


def is_export(name: str) -> bool:
    """Whether a baseline's name is the path of another export rather than of a file in conf/defense."""
    return (Path(name) / CARD_FILE).is_file()


def head_settings(config: TrainConfig) -> HeadSettings:
    """Where the head reads, as the config says; raises ValueError for what no head can read."""
    head = config.safety.head
    return HeadSettings(
        tuple(head.layers),
        tuple(head.pool),
        head.separate_windows,
        tuple(head.token_layers),
        tuple(head.window_pool or ()),
    )


def _head_problems(config: TrainConfig) -> list[str]:
    try:
        head_settings(config)
    except ValueError as error:
        return [f"safety.{error}"]
    return []


def _adapter_problems(config: TrainConfig) -> list[str]:
    if config.adapter.name == "none" and config.adapter.quantization is not None:
        return ["adapter.quantization: 4-bit weights cannot be trained themselves: set it to null, or adapter=qlora"]
    return []


def _decoding_problems(config: TrainConfig) -> list[str]:
    known = DecodingOptions.__dataclass_fields__
    try:
        DecodingOptions(**{key: value for key, value in asdict(config.decoding).items() if key in known})
    except ConfigError as error:
        return [str(error)]
    if config.decoding.schedule == "cascade" and config.safety.lambda_cls > 0 and not config.safety.head.token_layers:
        return ["decoding.schedule=cascade listens to a token head: give safety.head.token_layers a depth, as [0.6]"]
    return []


def _window_problems(config: TrainConfig) -> list[str]:
    decoding = config.decoding
    wanted = [theta for theta in ("theta_window", "theta_prefix") if getattr(decoding, theta) is not None]
    if config.safety.windows.per_answer or not wanted or not decoding.safety or config.safety.lambda_cls == 0:
        return []
    keys = " and ".join(f"decoding.{theta}=null" for theta in wanted)
    return [f"safety.windows.per_answer=0 trains no verdict on answers, but decoding looks at them: set {keys}"]


def _preference_problems(config: TrainConfig) -> list[str]:
    """Loss types of TRL that this set-up cannot train with, each with the reason."""
    if config.objective.name != "dpo":
        return []
    dpo, problems = config.objective.dpo, []
    losses = set(dpo.loss_type)
    if not losses - {"sft"}:
        problems.append(
            "objective.dpo.loss_type: names no preference loss (sft alone learns the chosen answers): add one such as "
            "sigmoid, or train with objective=sft"
        )
    if len(losses) < len(dpo.loss_type):
        problems.append("objective.dpo.loss_type: names one twice; give it a weight in objective.dpo.loss_weights")
    if dpo.loss_weights is not None and len(dpo.loss_weights) != len(dpo.loss_type):
        problems.append(
            f"objective.dpo.loss_weights: {len(dpo.loss_weights)} weights for {len(dpo.loss_type)} loss types"
        )
    if any(weight <= 0 for weight in dpo.loss_weights or ()):
        problems.append("objective.dpo.loss_weights: must be above 0; a negative one would prefer what is rejected")
    if "exo_pair" in losses and dpo.label_smoothing == 0:
        problems.append("objective.dpo.loss_type=exo_pair takes the logarithm of label_smoothing: set that, as 1e-3")
    if "robust" in losses and dpo.label_smoothing >= 0.5:
        problems.append("objective.dpo.loss_type=robust divides by 1 − 2·label_smoothing: set it below 0.5")
    return problems


def _document_problems(config: TrainConfig) -> list[str]:
    documents, problems = config.data.documents, []
    if not documents.sources:
        problems.append("data.documents.sources=[]: the pretraining stage needs documents")
    if documents.streaming and config.trainer.max_steps < 1:
        problems.append("data.documents.streaming=true: a stream has no known end; set trainer.max_steps")
    if documents.benign_up_to > documents.malicious_from:
        problems.append("data.documents.benign_up_to must not be above data.documents.malicious_from")
    if config.safety.lambda_cls > 0 and not documents.warm:
        problems.append("data.documents.warm=0: the head has no document to take its inputs' scale from; 600 will do")
    return problems


def _style_problems(config: TrainConfig) -> list[str]:
    return [
        f"data.mix.styles: '{style}' is no style{suggestion(style, STYLES)}"
        for style in config.data.mix.styles or ()
        if style not in STYLES
    ]


def _trainer_problems(config: TrainConfig) -> list[str]:
    trainer, problems = config.trainer, []
    if trainer.on_nonfinite == "skip" and config.deepspeed.config is not None:
        problems.append(
            "trainer.on_nonfinite=skip: DeepSpeed steps before anyone can look at the gradient; leave it at stop"
        )
    if trainer.save_steps is not None and trainer.save_steps > 1 and trainer.save_steps != int(trainer.save_steps):
        problems.append(f"trainer.save_steps={trainer.save_steps}: a share below 1, or a whole number of steps")
    if trainer.keep_best is not None and not config.data.val_fraction:
        problems.append("trainer.keep_best: nothing is evaluated while training with data.val_fraction=0")
    return problems


def _table_problems(config: TrainConfig) -> list[str]:
    """The evaluation that follows: its baselines and ablations exist."""
    if config.suite.name == "none":
        return []
    problems = []
    for name in config.baselines:
        try:
            if not is_export(name):
                load_option("defense", name)
        except SafealignError as error:
            problems.append(f"baselines: {error}")
    for name, changes in config.suite.ablations.items():
        try:
            DecodingOptions().override(dict(changes))
        except (SafealignError, TypeError, ValueError) as error:
            problems.append(f"suite.ablations.{name}: {error}")
    return problems


def _rank_problems(config: TrainConfig) -> list[str]:
    """What several processes, or DeepSpeed in one, cannot do."""
    problems = []
    if config.deepspeed.config is not None and find_spec("deepspeed") is None:
        how = "pip install -c constraints.txt -e '.[deepspeed]'"
        problems.append(f"deepspeed={config.deepspeed.name} needs the package deepspeed: {how}, or set deepspeed=none")
    many = world_size() > 1
    if many and config.objective.name == "srr":
        problems.append("objective=srr trains a small ranker in one process: start it without a launcher")
    problems += _cpu_problems(config)
    if config.deepspeed.config is not None:
        if config.objective.name == "pretraining":
            problems.append("objective=pretraining trains without DeepSpeed for now: set deepspeed=none")
        if config.objective.name == "dpo" and config.objective.dpo.after_sft:
            problems.append(
                "objective.dpo.after_sft=true: DeepSpeed trains one stage a run: set it to false and start from the "
                "export of a run of objective=sft (model.path=…/export), or set deepspeed=none"
            )
        if config.adapter.quantization is not None:
            problems.append("adapter.quantization: 4-bit weights are trained without DeepSpeed: set deepspeed=none")
    if config.suite.name != "none" and (many or config.deepspeed.config is not None):
        problems += [
            f"baselines: {name} is trained by one process without DeepSpeed: leave it out here, and afterwards run "
            f"python -m safealign.evaluate model={config.run_dir}/export baselines=[{name}]"
            for name in config.baselines
            if name in options_of("defense") and load_option("defense", name).kind == "trained"
        ]
    return problems


def _cpu_problems(config: TrainConfig) -> list[str]:
    """What keeps DeepSpeed from running on CPUs, in one process or several."""
    if config.deepspeed.config is None:
        return []
    stage, problems = f"deepspeed={config.deepspeed.name}", []
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "y", "on", "t"):
        problems.append(f"{stage}: ACCELERATE_USE_CPU is set, and accelerate leaves DeepSpeed out for it: unset it")
    name = None if torch.cuda.is_available() else missing_compiler()
    if name is not None:
        problems.append(
            f"{stage} compiles an extension for CPUs and finds no C++ compiler ({name}): install one (on Debian and "
            "Ubuntu, apt install g++) or name it in CXX, or set deepspeed=none"
        )
    return problems


def benign_answers(records: Sequence[Record]) -> int:
    """Benign requests that carry an answer: what calibration units are drawn from."""
    return sum(record.label == BENIGN and bool(record.response) for record in records)
