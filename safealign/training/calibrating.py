"""Thresholds from benign requests with their own answers, decoded as deployed with interventions off."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from safealign.config.roots import TrainConfig
from safealign.data.records import Record
from safealign.decoding.options import CalibratedThresholds
from safealign.decoding.trace import Recording
from safealign.evaluation.metrics.calibration import calibrate
from safealign.evaluation.metrics.reliability import brier, expected_calibration_error, fit_temperature
from safealign.model import SafeModel
from safealign.sampling import spread

Say = Callable[[str], None]
_LISTENED = 64  # benign answers that the token head's threshold rests on
_BATCH = 64  # rows of one cache: its memory grows with rows × the longest of them


@dataclass
class CalibrationResult:
    """`thresholds` as logits by name (query, window, prefix); `card` is what `safety.json` records of it."""

    thresholds: dict[str, float | None]
    temperature: float
    card: dict[str, Any] = field(default_factory=dict)


def calibrate_model(
    model: SafeModel,
    units: Sequence[Record],
    labelled: tuple[torch.Tensor, torch.Tensor],
    config: TrainConfig,
    say: Say,
) -> CalibrationResult:
    """Records every unit and sets θ_query, θ_window and θ_prefix; fits the temperature on `labelled`.

    `units`: benign requests that training did not see; the request's verdict needs no answer, so θ_query rests on
    all of them and θ_window on those that are answered. `labelled`: logits and labels of request rows kept from
    both training and thresholds. θ_prefix is calibrated on the same answers, cut at random and handed back as
    prefixes: another distribution, with a budget of its own.
    """
    settings = config.safety.calibration
    answered = spread(units, settings.answered)
    say(
        f"calibration: judging {len(units)} benign requests and answering {len(answered)} of them, interventions off"
    )
    prompts = [record.prompt for record in answered]
    temperature = _temperature(*labelled, say)
    # Set before anything is recorded: a θ_token given as a probability becomes a logit by the temperature.
    model.thresholds = CalibratedThresholds(temperature=temperature)
    listening = _set_token_threshold(model, spread(prompts, _LISTENED), config)
    recordings = _record(model, prompts, config)
    # Half of them: the prefix's threshold has a budget of its own, undivided, which needs fewer units.
    prefixed = _prefix_statistics(model, prompts[::2], recordings[::2], config)
    found = calibrate(
        {
            "query": model.score_logits([record.prompt for record in units]),
            "window": [_finite(recording.window_statistic) for recording in recordings],
        },
        settings.budget,
        1.0 - settings.error_probability,
        weights={"query": 1.0 - settings.window_share, "window": settings.window_share},
        distribution=_distribution(units),
    )
    prefix = calibrate({"prefix": prefixed}, settings.budget, 1.0 - settings.error_probability)
    thresholds: dict[str, float | None] = {name: part.logit for name, part in found.thresholds.items()}
    thresholds["prefix"] = prefix.thresholds["prefix"].logit
    thresholds["token"] = listening["logit"] if listening else None
    say(f"  {found.note}")
    card = found.to_dict() | {
        "prefix": prefix.to_dict(),
        "distribution": _distribution(units),
        "schedule": model.options.schedule,
        "tau": model.options.tau,
        "max_new_tokens": settings.max_new_tokens,
        "answered": len(answered),
        "token": listening,
        "temperature": temperature,
        "temperature_rows": len(labelled[0]),
        "reliability": _reliability(*labelled, temperature),
    }
    return CalibrationResult(thresholds, temperature, card)


def _record(model: SafeModel, prompts: Sequence[Any], config: TrainConfig, **options: Any) -> list[Recording]:
    limit = config.safety.calibration.max_new_tokens
    return model.record_batch(prompts, batch_size=_BATCH, max_new_tokens=limit, seed=config.seed, **options)


def _set_token_threshold(model: SafeModel, prompts: Sequence[Any], config: TrainConfig) -> dict[str, float]:
    """Sets θ_token in the model, so that a cascade can be recorded: benign tokens reach it at the wake rate.

    It costs time where it is too low and a few tokens' delay where it is too high, but promises nothing: an order
    statistic of a few answers does.
    """
    if model.parts is None or model.parts.token_head is None:
        return {}
    stirs = [logit for recording in _record(model, prompts, config, theta_token=None) for logit in recording.stirs]
    if not stirs:
        return {}
    rate = config.safety.calibration.wake_rate
    logit = sorted(stirs, reverse=True)[min(len(stirs) - 1, int(rate * len(stirs)))]
    model.thresholds = replace(model.thresholds or CalibratedThresholds(), token=logit)
    return {"logit": logit, "wake_rate": rate, "tokens": len(stirs)}


def _prefix_statistics(
    model: SafeModel, prompts: Sequence[Any], recordings: Sequence[Recording], config: TrainConfig
) -> list[float]:
    """Each unit's own answer cut at a random place, scanned as a caller's prefix would be."""
    from safealign.data.records import Message

    generator = torch.Generator().manual_seed(config.seed)
    cut = []
    for prompt, recording in zip(prompts, recordings, strict=True):
        words = recording.text.split(" ")
        kept = int(torch.randint(1, len(words) + 1, (1,), generator=generator))
        prefix = " ".join(words[:kept]).strip() or "Yes"
        cut.append((*prompt, Message("assistant", prefix)))
    scanned = model.record_batch(cut, batch_size=_BATCH, max_new_tokens=1, schedule="first")
    return [_finite(recording.prefix_statistic) for recording in scanned]


def _finite(value: float) -> float:
    """A unit without any window cannot raise an alarm: far below every threshold. A nan stays one, to be refused."""
    return -1e4 if value == -math.inf else value


def _temperature(logits: torch.Tensor, labels: torch.Tensor, say: Say) -> float:
    """The temperature that fits, or 1 where the validation requests lack a label.

    Never below 1: requests that are told apart without a mistake would have every probability shown as 0 or 1.
    """
    if len(labels.unique()) == 2:
        return max(1.0, fit_temperature(logits, labels))
    say("  probabilities keep temperature 1: the validation requests do not carry both labels")
    return 1.0


def _distribution(units: Sequence[Record]) -> str:
    sources: dict[str, int] = {}
    for record in units:
        sources[record.source or "unnamed"] = sources.get(record.source or "unnamed", 0) + 1
    parts = ", ".join(f"{n} from {name}" for name, n in sorted(sources.items()))
    return f"benign requests held out of training ({parts}), each with the model's own answer"


def _reliability(logits: torch.Tensor, labels: torch.Tensor, temperature: float) -> dict[str, float]:
    if not len(labels):
        return {}
    p = torch.sigmoid(logits / temperature)
    return {"brier": brier(p, labels), "expected_calibration_error": expected_calibration_error(p, labels)}
