"""What cannot stand beside `safety.frozen=true`: all that would train the model, or let it see the safety token."""

from __future__ import annotations

from safealign.config.composing import load_option
from safealign.config.overrides import options_of
from safealign.config.roots import TrainConfig
from safealign.ranks import world_size

_LEFT = "safety.frozen=true leaves the language model as it is"


def frozen_problems(config: TrainConfig) -> list[str]:
    """One line for each setting that does not fit, with the reason and what to set."""
    if not config.safety.frozen:
        if config.safety.head.kind == "logistic":
            return []
        return [
            f"safety.head.kind={config.safety.head.kind} is fitted and never trained: set safety.frozen=true "
            "(+recipe=frozen_head), or safety.head.kind=logistic"
        ]
    return [
        *_training_problems(config),
        *_decoding_problems(config),
        *_data_problems(config),
        *_baseline_problems(config),
    ]


def _training_problems(config: TrainConfig) -> list[str]:
    problems = []
    if config.adapter.name != "none":
        problems.append(
            f"adapter={config.adapter.name}: {_LEFT}, and an adapter would train it: set adapter=none, or "
            "safety.frozen=false"
        )
    if config.objective.name != "sft":
        problems.append(
            f"objective={config.objective.name}: {_LEFT}, and this objective would train it: set objective=sft (whose "
            "answers then only show what windows see), or safety.frozen=false"
        )
    if config.safety.lambda_cls == 0 or not config.safety.warm_start:
        problems.append(
            "safety.frozen=true fits the head and trains nothing besides: without safety.warm_start=true and a "
            "safety.lambda_cls above 0 nothing would be left to do"
        )
    if config.deepspeed.config is not None or world_size() > 1:
        problems.append(
            "safety.frozen=true reads each text once, in one process: start it without a launcher and with "
            "deepspeed=none"
        )
    return problems


def _decoding_problems(config: TrainConfig) -> list[str]:
    problems, decoding = [], config.decoding
    if decoding.gate:
        problems.append(
            f"decoding.gate=true: {_LEFT}, so that it never learnt to see the safety token, which would only disturb "
            "it: set decoding.gate=false"
        )
    if config.safety.gate.closed_share < 1.0:
        problems.append(
            f"safety.gate.closed_share={config.safety.gate.closed_share}: {_LEFT}, and its states are read as it is "
            "decoded, with the gate closed: set it to 1"
        )
    if decoding.dependency == "low":
        problems.append(
            "decoding.dependency=low acts through attention to the safety token alone, and with safety.frozen=true no "
            "text sees it: set it to medium or high"
        )
    return problems


def _data_problems(config: TrainConfig) -> list[str]:
    decoding = config.decoding
    wanted = [theta for theta in ("theta_window", "theta_prefix") if getattr(decoding, theta) is not None]
    if config.data.warm_answers or not wanted or not decoding.safety:
        return []
    keys = " and ".join(f"decoding.{theta}=null" for theta in wanted)
    return [f"data.warm_answers=0 leaves nothing to fit the windows' verdict on, but decoding asks for it: set {keys}"]


def _baseline_problems(config: TrainConfig) -> list[str]:
    if config.suite.name == "none":
        return []
    return [
        f"baselines: {name} trains the model, and {_LEFT}: leave it out, or evaluate this export beside it from a run "
        "that trains"
        for name in config.baselines
        if name in options_of("defense") and load_option("defense", name).kind == "trained"
    ]
