"""Which run a checkpoint belongs to: the settings, weights and data that decide about its losses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from safealign.config.roots import TrainConfig
from safealign.ranks import world_size
from safealign.training.prepare import TrainingData

# Settings that change what is written down, kept or looked at, and no weight.
_BOOKKEEPING = {
    "trainer": ("save_steps", "keep_last", "keep_best", "on_nonfinite", "stall_timeout", "threads")
    + ("logging_steps", "eval_steps"),
    "safety": ("calibration",),
    "model": ("name",),
    "data": ("name", "calibration", "evaluation"),
}
_SPLIT = "deepspeed."
_GROUPS = ("model", "data", "objective", "adapter", "trainer", "deepspeed", "safety")


@dataclass(frozen=True)
class Identity:
    """`config`: settings by dotted key; `model` and `data`: digests of base weights and training examples.

    `thresholds`: digest of what calibration depends on beside the trained weights. `world`: number of processes.
    """

    config: dict[str, Any]
    model: str
    data: str
    thresholds: str
    world: int

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return asdict(self)

    def difference(self, other: Mapping[str, Any]) -> str | None:
        """Why a checkpoint with the identity `other` is foreign to this run; None where it is not.

        How its state is split (processes, DeepSpeed) is compared elsewhere: another way is no other run.
        """
        if other.get("model") != self.model:
            return "it was trained from another model"
        theirs = other.get("config")
        theirs = theirs if isinstance(theirs, dict) else {}
        apart = [key for key in _unlike(self.config, theirs) if not key.startswith(_SPLIT)]
        if apart:
            shown = ", ".join(f"{key} ({theirs.get(key)} there, {self.config.get(key)} here)" for key in apart[:3])
            return f"it was trained under another config: {shown}{' and others' if len(apart) > 3 else ''}"
        return "it was trained on other data" if other.get("data") != self.data else None

    def split_difference(self, other: Mapping[str, Any]) -> tuple[str, str] | None:
        """The first DeepSpeed setting that differs, as `key=value` there and here; None where none does."""
        theirs = other.get("config", {})
        for key in _unlike(self.config, theirs):
            if key.startswith(_SPLIT):
                return f"{key}={theirs.get(key)}", f"{key}={self.config.get(key)}"
        return None


def identity_of(config: TrainConfig, base: str, data: TrainingData) -> Identity:
    """The identity of a run; `base`: the digest of its base's weights."""
    return _identity(config, base, _digest(_examples(config, data)), _digest(_calibration(config, data)))


def pretraining_identity(config: TrainConfig, base: str, report: Mapping[str, Any]) -> Identity:
    """That of a pretraining run on documents of this report; a stream is known by its settings alone."""
    return _identity(config, base, str(report.get("digest", "streamed")), "none")


def _identity(config: TrainConfig, base: str, data: str, thresholds: str) -> Identity:
    return Identity(_settings(config), base, data, thresholds, world_size())


def _unlike(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Keys whose values differ, sorted; `deepspeed.name` comes before what follows from it."""
    keys = [key for key in {*mine, *theirs} if mine.get(key) != theirs.get(key)]
    return sorted(keys, key=lambda key: (key != f"{_SPLIT}name", key))


def _settings(config: TrainConfig) -> dict[str, Any]:
    """What decides about the weights, by dotted key, as JSON gives it back."""
    found: dict[str, Any] = {"seed": config.seed}
    for group in _GROUPS:
        values = asdict(getattr(config, group))
        kept = {key: value for key, value in values.items() if key not in _BOOKKEEPING.get(group, ())}
        found |= dict(_flat(kept, group))
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}.{key}")
        else:
            yield f"{prefix}.{key}", value


def _examples(config: TrainConfig, data: TrainingData) -> Iterator[Any]:
    """Every example that a weight is trained on, with its layout; or, of a frozen model, that its head is fitted on."""
    if config.safety.frozen:
        yield from (*data.warm, *data.warm_answers)
    yield from data.train
    for pair in data.pairs.train:
        yield from (pair.start, *pair.sides)


def _calibration(config: TrainConfig, data: TrainingData) -> Iterator[Any]:
    yield from (config.safety.calibration, config.decoding, config.model.dtype)
    yield from ((record.id, record.prompt) for record in data.calibration)
    yield from ((example.id, example.input_ids) for example in (*data.validation, *data.warm_answers))


def _digest(things: Iterator[Any]) -> str:
    digest = hashlib.sha256()
    for thing in things:
        digest.update(repr(thing).encode())
    return digest.hexdigest()[:32]
