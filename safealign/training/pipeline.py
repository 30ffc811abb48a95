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
from safealign.evaluation.job import EvaluationJob, Evidence
from safealign.evaluation.systems import OURS, UNDEFENDED, System, ablations
from safealign.judges.encoder import SentenceEncoder
from safealign.layout import RowKind
from safealign.model import SafeModel, load
from safealign.modeling.attach import attach
from safealign.modeling.checkpoint import SafetyCard
from safealign.modeling.exporting import export_model
from safealign.modeling.loading import TINY_NAME, load_base
from safealign.modeling.safety_token import HeadSettings
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
    data = prepare_data(config, model, renderer, console)
    require_examples(data)
    trained = fit(config, model, renderer, data, console)
    console.print(f"trained in {trained.seconds / 60:.1f} min", highlight=False)
    calibration = None
    if config.safety.lambda_cls > 0:
        live = SafeModel(trained.model, renderer.tokenizer, trained.parts, _card(config, data, None))
        verdicts = _request_verdicts(trained, data)
        calibration = calibrate_model(live, data.calibration, verdicts, config, _sayer(console))
    export = write_export(config, trained, renderer, _card(config, data, calibration))
    console.print(f"exported and verified: {export}", highlight=False)
    if config.suite.name != "none":
        evaluate_run(config, export, data, console)
    return export


def evaluate_run(config: TrainConfig, export: Path, data: TrainingData, console: Console) -> None:
    """The quick table: the export, loaded from disk, beside the untouched model."""
    console.print(f"evaluation: {config.suite.name} suite", highlight=False)
    base, renderer = load_model(config)
    undefended = SafeModel(base, renderer.tokenizer)
    ours = System(OURS, load(export))
    systems = [System(UNDEFENDED, undefended), ours, *ablations(ours, config.suite.ablations)]
    job = EvaluationJob(
        systems,
        config.suite,
        config.attack,
        Path(config.run_dir) / "report",
        console,
        title=f"{config.name}: undefended beside safealign",
        command=f"python -m safealign.train +recipe={config.name}",
        judge=config.judge.name,
        offline=config.offline,
        evidence=evidence_of(config, data),
    )
    job.run()


def evidence_of(config: TrainConfig, data: TrainingData) -> Evidence:
    """Training requests, calibration units and a fresh copy of the base model for the head's baselines."""
    base, _ = load_model(config)
    frozen = attach(base, HeadSettings((0.5,), ("last", "mean")))
    settings = config.safety.calibration
    return Evidence(data.requests, data.calibration, frozen, settings.budget / 2, 1.0 - settings.error_probability / 2)


def prepare_data(config: TrainConfig, model: Any, renderer: Renderer, console: Console) -> TrainingData:
    """The run's data; near-duplicates of evaluation prompts are found by meaning as well."""
    encode = SentenceEncoder(offline=config.offline).encode if config.data.leak_check.enabled else None
    return prepare(config, model, renderer, _sayer(console), encode)


def announce(config: TrainConfig, console: Console) -> None:
    """Says what will happen, and under which licence the model comes."""
    console.print(
        f"[bold]{config.name}[/]: {config.model.path} + {config.data.name} → {config.run_dir}", highlight=False
    )
    if config.model.path in registry():
        note = asset_note(config.model.path)
        console.print(f"  model: {note['origin']} ({note['licence']})", highlight=False)


def load_model(config: TrainConfig) -> tuple[Any, Renderer]:
    """The base model in fp32 (autocast decides what is computed in bf16) and its renderer."""
    model, tokenizer = load_base(
        base_name(config),
        attn=config.model.attn,
        chat_template=config.model.chat_template,
        offline=config.offline,
    )
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), Renderer(tokenizer)


def base_name(config: TrainConfig) -> str:
    """The base model's name as exports record it; a tiny random one carries what makes it."""
    if config.model.path == TINY_NAME:
        return f"{TINY_NAME}:{config.model.architecture or 'llama'}:{config.seed}"
    return config.model.path


def write_export(config: TrainConfig, trained: TrainedModel, renderer: Renderer, card: SafetyCard) -> Path:
    """Writes the last checkpoint (the adapter, or all weights without one) and `export/`, and loads the export."""
    run = Path(config.run_dir)
    common = (trained.model, renderer.tokenizer, trained.parts, card)
    name = base_name(config)
    export_model(run / "checkpoints" / f"step-{trained.steps}", *common, merge=False, base_name=name)
    export = export_model(run / "export", *common, merge=True, base_name=name)
    load(export, offline=config.offline)
    return export


def decoding_options(config: TrainConfig) -> dict[str, Any]:
    """The config's decoding group as keywords of `generate`, for the card's defaults."""
    chosen = asdict(config.decoding)
    unknown = set(chosen) - set(DecodingOptions.__dataclass_fields__)
    if unknown:
        raise ConfigError(f"decoding keys without a meaning: {', '.join(sorted(unknown))}")
    return chosen


def _card(config: TrainConfig, data: TrainingData, calibration: CalibrationResult | None) -> SafetyCard:
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


def _request_verdicts(trained: TrainedModel, data: TrainingData) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of the validation requests: kept from training and from the thresholds."""
    from safealign.modeling.features import layout_logits

    examples = [e for e in data.validation if e.layout.safety[0].label is not None]
    found = layout_logits(trained.parts, [e.input_ids for e in examples], [e.layout for e in examples])
    logits = torch.stack([values[0] for values in found])
    assert all(e.layout.safety[0].kind is RowKind.REQUEST for e in examples)
    return logits, torch.tensor([e.layout.safety[0].label for e in examples])


def _sayer(console: Console) -> Any:
    return lambda text: console.print(text, highlight=False)
