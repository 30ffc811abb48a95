"""The pretraining job from config to export: documents → warm start → training → export, without thresholds."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from safealign.config.composing import refuse
from safealign.config.roots import TrainConfig
from safealign.data.records import Message
from safealign.model import SafeModel
from safealign.modeling.loading import weights_digest
from safealign.training.carrying import carried_problems
from safealign.training.checks import config_problems, model_problems
from safealign.training.digests import run_digests
from safealign.training.document_data import document_report, prepare_documents
from safealign.training.memory import release
from safealign.training.pipeline import announce, load_model, safety_card, sayer, verify_export, write_export
from safealign.training.prepare import TrainingData
from safealign.training.pretraining import pretrain
from safealign.training.tracking import Tracker

UNCALIBRATED = (
    "not calibrated: after pretraining alone the head judges documents, and neither requests nor answers were trained; "
    "fine-tuning from this export sets the thresholds"
)
_COMPARED = ("Hello.", "How do I bake bread?", "Tell me about the sea.")


def build_pretrained(config: TrainConfig, console: Console, tracker: Tracker | None = None) -> Path:
    """Runs the stage and returns its export, verified by loading it.

    Raises ConfigError for settings that cannot work together, DataError for bad documents.
    """
    refuse([*config_problems(config), *carried_problems(config)])
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    torch.manual_seed(config.seed)
    announce(config, console)
    model, renderer = load_model(config)
    refuse(model_problems(config, model))
    tracker, base_digest = tracker or Tracker(), weights_digest(model)
    data = prepare_documents(config, renderer, sayer(console))
    tracker.describe({"digests": run_digests(config, base_digest, renderer, data.report)})
    trained = pretrain(config, model, renderer, data, console, tracker)
    release()
    console.print(f"trained in {trained.seconds / 60:.1f} min", highlight=False)
    card = safety_card(config, TrainingData([], [], [], [], [], [], report=document_report(data)), None)
    card.calibration = {"note": UNCALIBRATED}
    export = write_export(config, trained, renderer, card)
    live = SafeModel(trained.model, renderer.tokenizer, trained.parts, card)
    verify_export(config, live, export, [[Message("user", text)] for text in _COMPARED])
    console.print(f"exported and verified: {export}", highlight=False)
    return export
