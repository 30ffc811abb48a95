"""The pictures of a report: reliability, scores by set, attack success by prefill length."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from safealign.evaluation.metrics.reliability import reliability_bins
from safealign.model import SafeModel
from safealign.reporting import plots
from safealign.reporting.summary import Summary

HARMFUL_SETS = ("HarmBench",)


def draw(folder: Path, summary: Summary, model: SafeModel, scores: Mapping[str, Sequence[float]]) -> list[Path]:
    """Writes the pictures that the figures at hand allow; `scores` are request logits by set."""
    made = []
    rates = _by_prefill(summary)
    if any(len(points) > 1 for points in rates.values()):
        made.append(plots.attack_by_prefill(rates, folder / "attack_success.png"))
    if scores:
        temperature = model.thresholds.temperature if model.thresholds else 1.0
        query = model.thresholds.query if model.thresholds else None
        lines = {"θ query": query} if query is not None else None
        made.append(plots.score_histograms(scores, folder / "scores.png", harmful=HARMFUL_SETS, thresholds=lines))
        logits = torch.tensor([value for values in scores.values() for value in values])
        labels = torch.tensor([float(name in HARMFUL_SETS) for name, values in scores.items() for _ in values])
        bins = reliability_bins(torch.sigmoid(logits / temperature), labels)
        made.append(plots.reliability(bins, folder / "reliability.png"))
    return made


def _by_prefill(summary: Summary) -> dict[str, dict[int, Any]]:
    found: dict[str, dict[int, Any]] = {}
    area = summary.areas["attack_success"]
    for row, cells in area.cells.items():
        for key, cell in cells.items():
            match = re.fullmatch(r"direct|prefill_(\d+)", key)
            if match:
                found.setdefault(area.rows[row], {})[int(match.group(1) or 0)] = cell
    return found
