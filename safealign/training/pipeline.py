"""The main job from config to report: data → warm start → training → calibration → export → table."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from safealign.assets import asset_note, registry
from safealign.config.roots import TrainConfig
from safealign.data.rendering import Renderer
from safealign.decoding.options import DecodingOptions
from safealign.errors import ConfigError
from safealign.judges.encoder import SentenceEncoder
from safealign.layout import RowKind
from safealign.model import SafeModel
from safealign.modeling.checkpoint import SafetyCard
from safealign.modeling.exporting import export_model
from safealign.modeling.loading import load_base
from safealign.training.calibrating import CalibrationResult, calibrate_model
from safealign.training.prepare import TrainingData, prepare
from safealign.training.run import TrainedModel, fit, require_examples


def run(config: TrainConfig, console: Console) -> Path:
    """Runs every stage; returns the export folder."""
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    torch.manual_seed(config.seed)
    announce(config, console)
    model, renderer = load_model(config)
    encode = SentenceEncoder().encode if config.data.leak_check.enabled else None
    data = prepare(config, model, renderer, _sayer(console), encode)
    require_examples(data)
    trained = fit(config, model, renderer, data, console)
    console.print(f"trained in {trained.seconds / 60:.1f} min", highlight=False)
    live = SafeModel(trained.model, renderer.tokenizer, trained.parts, _card(config, data, None))
    calibration = calibrate_model(live, data.calibration, _request_verdicts(trained, data, live), config, _sayer(console))
    export = write_export(config, trained, renderer, _card(config, data, calibration))
    console.print(f"exported and verified: {export}", highlight=False)
    if config.suite.name != "none":
        from safealign.evaluation.after_training import report_on

        report_on(config, export, data, trained.warm, console)
    return export


def announce(config: TrainConfig, console: Console) -> None:
    """Says what will happen, and under which licence the model comes."""
    console.print(f"[bold]{config.name}[/]: {config.model.path} + {config.data.name} → {config.run_dir}", highlight=False)
    if config.model.path in registry():
        note = asset_note(config.model.path)
        console.print(f"  model: {note['origin']} ({note['licence']})", highlight=False)


def load_model(config: TrainConfig) -> tuple[Any, Renderer]:
    """The base model in fp32 (autocast decides what is computed in bf16) and its renderer."""
    if config.model.path == "tiny_random":
        from safealign.modeling.tiny import tiny_model, tiny_tokenizer

        return tiny_model(config.model.architecture or "llama", config.seed), Renderer(tiny_tokenizer())
    model, tokenizer = load_base(
        config.model.path,
        attn=config.model.attn,
        chat_template=config.model.chat_template,
        offline=config.offline,
    )
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), Renderer(tokenizer)


def write_export(config: TrainConfig, trained: TrainedModel, renderer: Renderer, card: SafetyCard) -> Path:
    """Writes `export/` (merged) and loads it again to be sure that it is whole."""
    folder = Path(config.run_dir) / "export"
    export_model(
        folder, trained.model, renderer.tokenizer, trained.parts, card, merge=True, base_name=config.model.path
    )
    return folder


def decoding_options(config: TrainConfig) -> dict[str, Any]:
    """The config's decoding group as keywords of `generate`, for the card's defaults."""
    chosen = asdict(config.decoding)
    unknown = set(chosen) - set(DecodingOptions.__dataclass_fields__)
    if unknown:
        raise ConfigError(f"decoding keys without a meaning: {', '.join(sorted(unknown))}")
    return chosen


def _card(config: TrainConfig, data: TrainingData, calibration: CalibrationResult | None) -> SafetyCard:
    from safealign.modeling.safety_token import HeadSettings

    options = decoding_options(config)
    return SafetyCard(
        head=HeadSettings(tuple(config.safety.head.layers), tuple(config.safety.head.pool)),
        placement=config.safety.placement,
        window_sees_query=config.safety.windows.sees_query,
        trigger=config.safety.trigger,
        refusal=str(options.pop("refusal")),
        decoding=options,
        thresholds=calibration.thresholds if calibration else {},
        calibration=calibration.card if calibration else {},
        training=data.report | {"base": config.model.path, "recipe": config.name, "seed": config.seed},
    )


def _request_verdicts(
    trained: TrainedModel, data: TrainingData, live: SafeModel
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of the validation requests: kept from training and from the thresholds."""
    from safealign.modeling.features import layout_logits

    examples = [e for e in data.validation if e.layout.safety[0].label is not None]
    found = layout_logits(trained.parts, [e.input_ids for e in examples], [e.layout for e in examples])
    logits = torch.stack([values[0] for values in found])
    assert all(e.layout.safety[0].kind is RowKind.REQUEST for e in examples)
    return logits, torch.tensor([e.layout.safety[0].label for e in examples])


def _sayer(console: Console) -> Any:
    return lambda text: console.print(text, highlight=False)
