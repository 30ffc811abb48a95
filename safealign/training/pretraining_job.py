"""The pretraining job from config to export: documents → warm start → training → export, without thresholds."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from safealign.config.roots import TrainConfig
from safealign.data.records import Message
from safealign.model import SafeModel
from safealign.modeling.checkpoint import SafetyCard
from safealign.ranks import current
from safealign.training.checkpoints.identity import pretraining_identity
from safealign.training.checkpoints.keeper import Keeper
from safealign.training.digests import run_digests
from safealign.training.document_data import DocumentData, document_report, prepare_documents
from safealign.training.memory import release
from safealign.training.pipeline import base_name, begin, safety_card, sayer, verify_export, write_export
from safealign.training.prepare import TrainingData
from safealign.training.pretraining import pretrain
from safealign.training.tracking import Tracker

UNCALIBRATED = (
    "not calibrated: after pretraining alone the head judges documents, and neither requests nor answers were trained; "
    "fine-tuning from this export sets the thresholds"
)
_COMPARED = ("Hello.", "How do I bake bread?", "Tell me about the sea.")


def build_pretrained(config: TrainConfig, console: Console, tracker: Tracker | None = None) -> Path | None:
    """Runs the stage and returns its export, verified by loading it; None on the ranks after the first.

    Raises ConfigError for settings that cannot work together, DataError for bad documents.
    """
    started, tracker = time.monotonic(), tracker or Tracker()
    model, renderer, base_digest = begin(config, console)
    data = current().first_then_others(lambda: prepare_documents(config, renderer, sayer(console)))
    current().agree("documents", {"base": base_digest, "digest": str(data.report.get("digest", "streamed"))})
    tracker.describe({"digests": run_digests(config, base_digest, renderer, data.report)})
    identity = pretraining_identity(config, base_digest, data.report)
    keeper = Keeper.open(config, identity, _card(config, data), base_name(config), sayer(console), started)
    trained = pretrain(config, model, renderer, data, console, tracker, keeper)
    release()
    if not current().first:
        return None
    console.print(f"trained in {trained.seconds / 60:.1f} min", highlight=False)
    card = keeper.calibrated_card or _card(config, data)
    export = write_export(config, trained, renderer, card, keeper)
    live = SafeModel(trained.model, renderer.tokenizer, trained.parts, card)
    verify_export(config, live, export, [[Message("user", text)] for text in _COMPARED])
    console.print(f"exported and verified: {export}", highlight=False)
    return export


def _card(config: TrainConfig, data: DocumentData) -> SafetyCard:
    """What is known of the documents by now: of a stream, what was read so far."""
    card = safety_card(config, TrainingData([], [], [], [], [], [], report=document_report(data)), None)
    card.calibration = {"note": UNCALIBRATED}
    return card
