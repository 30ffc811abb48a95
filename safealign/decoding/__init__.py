"""Decoding with explicit safety signals: rules, schedules, policies, the batched decoder and its reference."""

from safealign.decoding.decoded import DecodedRow
from safealign.decoding.decoder import Decoder
from safealign.decoding.engine import CachedEngine
from safealign.decoding.observing import AnswerStates, Observer, spoken
from safealign.decoding.options import CalibratedThresholds, DecodingOptions
from safealign.decoding.planning import Feed
from safealign.decoding.policy import DEFAULT_REFUSAL, DEFAULT_TRIGGER, Policy, RefusalTexts
from safealign.decoding.rows import Prompt, RowSettings
from safealign.decoding.rules import Dependency, Probe, ProbeKind, RowState, Rules, State
from safealign.decoding.run import Run
from safealign.decoding.schedule import make_schedule
from safealign.decoding.trace import Evaluation, Recording

__all__ = [
    "DEFAULT_REFUSAL",
    "DEFAULT_TRIGGER",
    "AnswerStates",
    "CachedEngine",
    "CalibratedThresholds",
    "DecodedRow",
    "Decoder",
    "DecodingOptions",
    "Dependency",
    "Evaluation",
    "Feed",
    "Observer",
    "Policy",
    "Probe",
    "ProbeKind",
    "Prompt",
    "Recording",
    "RefusalTexts",
    "RowSettings",
    "RowState",
    "Rules",
    "Run",
    "State",
    "make_schedule",
    "spoken",
]
