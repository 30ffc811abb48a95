"""Calibration records what will be deployed: same rules, same thresholds of the token head."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from safealign.data.records import Message, Record
from safealign.decoding import CalibratedThresholds, DecodingOptions, Recording
from safealign.training.calibrating import calibrate_model

# Overconfident verdicts: the temperature that fits is well above 1.
VERDICTS = torch.tensor([9.0, -9.0] * 20), torch.tensor([1.0, 0.0] * 15 + [0.0, 1.0] * 5)


class RecordedModel:
    """Stands for a SafeModel with a token head; remembers the rules' θ_token of every answer that it recorded."""

    def __init__(self, options: DecodingOptions) -> None:
        self.options, self.thresholds = options, None
        self.parts = SimpleNamespace(token_head=object())
        self.listened: list[float | None] = []

    def record_batch(self, prompts: Sequence[Any], *, batch_size: int, **options: Any) -> list[Recording]:
        chosen: Any = self.options.override(options)
        self.listened.append(chosen.rules(self.thresholds, record=True).theta_token)
        return [Recording(0.0, (0.1,), {1: (0.2,)}, 4, "a few words here", (0.1, 0.2, 0.3, 0.4)) for _ in prompts]

    def score_logits(self, prompts: Sequence[Any]) -> list[float]:
        return [float(i) for i, _ in enumerate(prompts)]


@pytest.mark.parametrize("theta_token", ["calibrated", 0.9])
def test_a_cascade_is_recorded_with_the_threshold_that_it_is_deployed_with(theta_token: float | str) -> None:
    options = DecodingOptions(schedule="cascade", theta_token=theta_token)
    model: Any = RecordedModel(options)
    units = [Record((Message("user", f"question {i}"),), label="benign") for i in range(40)]
    values = {"answered": 20, "budget": 0.2, "window_share": 0.5, "error_probability": 0.2, "wake_rate": 0.05}
    settings = SimpleNamespace(**values, max_new_tokens=8)
    config: Any = SimpleNamespace(safety=SimpleNamespace(calibration=settings), seed=0)
    found = calibrate_model(model, units, VERDICTS, config, lambda line: None)
    assert found.temperature > 1.0
    deployed = options.rules(CalibratedThresholds(**found.thresholds, temperature=found.temperature)).theta_token
    answered = model.listened[1]  # the first pass listens to the token head, the last scans prefixes
    assert answered is not None and answered == deployed
