"""What a calibration looks like on the validation examples: their verdicts, figures as deployed, reliability plots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from safealign.evaluation.metrics.reliability import reliability_bins
from safealign.layout import RowKind
from safealign.modeling.features import layout_logits
from safealign.reporting import plots
from safealign.training.calibrating import CalibrationResult
from safealign.training.callbacks.metrics_file import MetricsFile
from safealign.training.prepare import TrainingData
from safealign.training.run import TrainedModel
from safealign.training.tracking import Tracker
from safealign.training.verdict_metrics import THRESHOLD_OF, calibrated_metrics


def validation_verdicts(trained: TrainedModel, data: TrainingData) -> dict[str, torch.Tensor]:
    """`logits`, `labels` and `kinds`, each `[N]`, of the labelled rows kept from training and from the thresholds."""
    examples = [e for e in data.validation if any(row.label is not None for row in e.layout.safety)]
    found = layout_logits(trained.parts, [e.input_ids for e in examples], [e.layout for e in examples])
    rows = [
        (float(logit), row.label, int(row.kind))
        for example, logits in zip(examples, found, strict=True)
        for row, logit in zip(example.layout.safety, logits, strict=True)
        if row.label is not None
    ]
    columns = zip(*rows, strict=True) if rows else ((), (), ())
    return {name: torch.tensor(column) for name, column in zip(("logits", "labels", "kinds"), columns, strict=True)}


def request_verdicts(verdicts: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of the requests alone."""
    chosen = verdicts["kinds"] == int(RowKind.REQUEST)
    return verdicts["logits"][chosen], verdicts["labels"][chosen]


def report_calibration(
    run_dir: Path, verdicts: Mapping[str, torch.Tensor], found: CalibrationResult, step: int, tracker: Tracker
) -> list[Path]:
    """Writes figures to `metrics.jsonl` and `report/calibration_<kind>.png`, shows both; returns the pictures."""
    metrics = calibrated_metrics(verdicts, found.thresholds, found.temperature)
    if metrics:
        MetricsFile(run_dir / "metrics.jsonl").write({"step": step, **metrics})
        tracker.metrics(metrics, step)
    pictures = []
    for kind in THRESHOLD_OF:
        chosen = verdicts["kinds"] == int(kind)
        if not chosen.any():
            continue
        name = kind.name.lower()
        bins = reliability_bins(
            torch.sigmoid(verdicts["logits"][chosen] / found.temperature), verdicts["labels"][chosen]
        )
        path = run_dir / "report" / f"calibration_{name}.png"
        pictures.append(plots.reliability(bins, path, f"Reliability of the {name} verdict, validation"))
        tracker.picture(f"calibration/{name}", path)
    return pictures
