"""The decoding options: every key of `conf/decoding`, each also a keyword of `generate`."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from safealign.decoding.policy import DEFAULT_REFUSAL, DEFAULT_TRIGGER
from safealign.decoding.rules import Dependency, Rules
from safealign.decoding.schedule import make_schedule
from safealign.errors import ConfigError

CALIBRATED = "calibrated"


@dataclass(frozen=True)
class CalibratedThresholds:
    """The thresholds that an export carries, as raw logits (None: off), and the temperature of its p."""

    query: float | None = None
    window: float | None = None
    prefix: float | None = None
    token: float | None = None
    temperature: float = 1.0

    def p(self, logit: float) -> float:
        """sigmoid(logit / temperature), the calibrated probability of malicious."""
        scaled = max(-700.0, min(700.0, logit / self.temperature))
        return 1.0 / (1.0 + math.exp(-scaled))


COLDEST = 1e-4  # a temperature below it divides logits into infinities, and means greedy


@dataclass(frozen=True)
class DecodingOptions:
    """How answers are decoded.

    A threshold is a probability in (0, 1), `calibrated` (the export's own) or None (off); whatever is given
    is compared as a logit. `temperature` 0 is greedy, and so is less than 0.0001. `seed`: row i of a batch draws
    from a generator of its own, seeded with seed + i; None takes a fresh seed. Raises ConfigError for values out
    of range.
    """

    schedule: str = "annealing"  # first | periodic | annealing | every | cascade
    interval: int = 10  # tokens between the windows of `periodic`
    floor: int = 32  # largest interval of `annealing` and `cascade`
    dependency: str = "medium"  # low: attention only | medium: trigger, then the model explains | high: stop
    tau: int = 3  # hits in a row that make an intervention, 1 to 3
    r1: int = 10  # rule 1: the slot of a refused request is renewed up to this token
    r2: int = 10  # rule 2: length of a window
    r3: int = 10  # rule 3: how far a confirmation looks past the alarm
    theta_query: float | str | None = CALIBRATED  # the request's threshold
    theta_window: float | str | None = CALIBRATED  # the answer windows' threshold
    theta_prefix: float | str | None = CALIBRATED  # the threshold of windows over a caller's prefix
    theta_token: float | str | None = CALIBRATED  # from which the token head asks for a window (`cascade`)
    gate: bool = True  # whether the answer attends to the safety slot
    safety: bool = True  # False: the bare model
    cache: str = "dynamic"  # keys and values: grow with the text | static: allocated at once for the longest answer
    prefill_chunk: int = 2048  # tokens of a prompt that are fed in one forward
    fused: bool = True  # evaluate the safety row in the token's own forward instead of one of its own
    trigger: str = DEFAULT_TRIGGER  # what `medium` inserts
    refusal: str = DEFAULT_REFUSAL  # what `high` ends with
    max_new_tokens: int = 128
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0  # 0: off
    repetition_penalty: float = 1.0  # 1: off
    stop: tuple[str, ...] = ()  # texts that end an answer; they are not part of it
    seed: int | None = 0

    def __post_init__(self) -> None:
        stop: Any = self.stop
        if isinstance(stop, list):  # as Hydra and JSON spell it
            object.__setattr__(self, "stop", tuple(stop))
        problems = [*_kind_problems(self), *_range_problems(self), *_threshold_problems(self)]
        if problems:
            raise ConfigError("decoding options: " + "; ".join(problems))
        if self.temperature < COLDEST:
            object.__setattr__(self, "temperature", 0.0)
        make_schedule(self.schedule, interval=self.interval, floor=self.floor)

    def override(self, changes: Mapping[str, Any]) -> DecodingOptions:
        """A copy with `changes`; unknown names raise ConfigError with the nearest match."""
        check_names(changes)
        return replace(self, **changes)

    def shares_rules_with(self, other: DecodingOptions) -> bool:
        """Whether both can be decoded in one batch: they differ in what belongs to a row alone (`PER_ROW`)."""
        return self == replace(other, **{name: getattr(self, name) for name in PER_ROW})

    def rules(self, calibrated: CalibratedThresholds | None = None, *, record: bool = False) -> Rules:
        """The rules these options ask for, thresholds as logits."""
        return Rules(
            schedule=make_schedule(self.schedule, interval=self.interval, floor=self.floor),
            dependency=Dependency(self.dependency),
            tau=self.tau,
            r1=self.r1,
            r2=self.r2,
            r3=self.r3,
            theta_query=None if record else self._theta("query", calibrated),
            theta_window=None if record else self._theta("window", calibrated),
            theta_prefix=None if record else self._theta("prefix", calibrated),
            theta_token=self._theta("token", calibrated) if self.schedule == "cascade" else None,
            record=record,
        )

    def _theta(self, name: str, calibrated: CalibratedThresholds | None) -> float | None:
        value = getattr(self, f"theta_{name}")
        if value is None:
            return None
        if value != CALIBRATED:
            return math.log(value / (1.0 - value)) * (calibrated.temperature if calibrated else 1.0)
        if calibrated is None:
            raise ConfigError(
                f"decoding.theta_{name} is 'calibrated', but this model carries no calibration: "
                f"give a probability such as theta_{name}=0.5, or None to switch it off"
            )
        found: float | None = getattr(calibrated, name)
        return found


NAMES = tuple(option.name for option in fields(DecodingOptions))
# What each row of a batch may have of its own; the rules, the gate and the thresholds are the batch's.
PER_ROW = (
    "max_new_tokens",
    "min_new_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "stop",
    "seed",
)


def check_names(given: Mapping[str, Any]) -> None:
    """Raises ConfigError for the first name that is no decoding option, with the nearest one that is."""
    for name in given:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known options: {', '.join(NAMES)}"
            raise ConfigError(f"unknown decoding option {name!r}{hint}")


@dataclass(frozen=True)
class _Limit:
    """Allowed range of a numeric option, both ends included."""

    low: float
    high: float = math.inf
    whole: bool = True
    note: str = field(default="")


_LIMITS = {
    "interval": _Limit(1),
    "floor": _Limit(1),
    "tau": _Limit(1, 3),
    "r1": _Limit(0),
    "r2": _Limit(1),
    "r3": _Limit(1),
    "prefill_chunk": _Limit(1),
    "max_new_tokens": _Limit(1),
    "min_new_tokens": _Limit(0),
    "temperature": _Limit(0, whole=False, note=" (0 is greedy)"),
    "top_p": _Limit(0, 1, whole=False),
    "top_k": _Limit(0, note=" (0 switches it off)"),
    "min_p": _Limit(0, 1, whole=False, note=" (0 switches it off)"),
    "repetition_penalty": _Limit(0.01, 100, whole=False, note=" (1 switches it off)"),
}


_KINDS: dict[type, tuple[str, tuple[str, ...]]] = {
    bool: ("true or false", ("gate", "safety", "fused")),
    str: ("a text", ("schedule", "dependency", "cache", "trigger", "refusal")),
}


def _kind_problems(options: DecodingOptions) -> list[str]:
    return [
        f"{name} must be {words}, got {getattr(options, name)!r}"
        for kind, (words, names) in _KINDS.items()
        for name in names
        if not isinstance(getattr(options, name), kind)
    ]


def _range_problems(options: DecodingOptions) -> list[str]:
    problems = []
    for name, limit in _LIMITS.items():
        value = getattr(options, name)
        kinds = (int,) if limit.whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not limit.low <= value <= limit.high:
            upper = "" if limit.high == math.inf else f" and at most {limit.high:g}"
            kind = "a whole number" if limit.whole else "a number"
            problems.append(f"{name} must be {kind}, at least {limit.low:g}{upper}{limit.note}, got {value!r}")
    if isinstance(options.dependency, str) and options.dependency not in tuple(Dependency):
        problems.append(f"dependency must be one of {', '.join(Dependency)}, got {options.dependency!r}")
    if isinstance(options.cache, str) and options.cache not in ("dynamic", "static"):
        problems.append(f"cache must be dynamic or static, got {options.cache!r}")
    if options.seed is not None and (isinstance(options.seed, bool) or not isinstance(options.seed, int)):
        problems.append(f"seed must be a whole number or None, got {options.seed!r}")
    if not isinstance(options.stop, tuple) or not all(isinstance(text, str) and text for text in options.stop):
        problems.append(f"stop must be a list of texts, none of them empty, got {options.stop!r}")
    if not problems and options.min_new_tokens > options.max_new_tokens:
        problems.append(f"min_new_tokens {options.min_new_tokens} is more than max_new_tokens {options.max_new_tokens}")
    return problems


def _threshold_problems(options: DecodingOptions) -> list[str]:
    problems = []
    for name in ("theta_query", "theta_window", "theta_prefix", "theta_token"):
        value = getattr(options, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (value is None or value == CALIBRATED or (number and 0.0 < value < 1.0)):
            problems.append(f"{name} must be a probability in (0, 1), 'calibrated' or None, got {value!r}")
    return problems
