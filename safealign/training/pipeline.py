"""The main job from config to export: data → warm start → training → calibration → export."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from safealign.assets import asset_note, registry
from safealign.config.composing import refuse
from safealign.config.roots import TrainConfig
from safealign.data.rendering import Renderer
from safealign.decoding.options import DecodingOptions
from safealign.errors import CheckpointError, ConfigError
from safealign.judges.encoder import SentenceEncoder
from safealign.model import SafeModel, load
from safealign.modeling.checkpoint import SafetyCard
from safealign.modeling.exporting import export_model, merged
from safealign.modeling.loading import TINY_NAME, load_base, weights_digest
from safealign.modeling.precision import serving_dtype, weights_as
from safealign.modeling.quantization import Quantization
from safealign.ranks import current
from safealign.session import Conversation
from safealign.training.calibrating import CalibrationResult, calibrate_model
from safealign.training.calibration_report import report_calibration, request_verdicts, validation_verdicts
from safealign.training.cards import write_card
from safealign.training.carrying import carried_problems
from safealign.training.checkpoints.identity import identity_of
from safealign.training.checkpoints.keeper import Keeper
from safealign.training.checkpoints.store import step_name
from safealign.training.checks import config_problems, head_settings, model_problems
from safealign.training.digests import run_digests
from safealign.training.frozen import fit_frozen
from safealign.training.memory import release
from safealign.training.prepare import TrainingData, prepare
from safealign.training.run import TrainedModel, fit, require_examples
from safealign.training.tracking import Tracker


@dataclass
class Built:
    """What training leaves behind: the export on disk and the data it came from."""

    export: Path
    data: TrainingData


def build(config: TrainConfig, console: Console, tracker: Tracker | None = None) -> Built | None:
    """Runs every stage up to the export; on the ranks after the first up to the end of training, and None.

    Raises ConfigError for settings that cannot work together.
    """
    started, tracker = time.monotonic(), tracker or Tracker()
    model, renderer, base_digest = begin(config, console)
    data = current().first_then_others(lambda: prepare_data(config, model, renderer, console))
    current().agree("training data", {"base": base_digest, "digest": data.report["digest"]})
    require_examples(config, data)
    tracker.describe({"digests": run_digests(config, base_digest, renderer, data.report)})
    identity, plain_card = identity_of(config, base_digest, data), safety_card(config, data, None)
    keeper = Keeper.open(config, identity, plain_card, base_name(config), sayer(console), started)
    if config.safety.frozen:
        trained = fit_frozen(config, model, renderer, data, console, keeper)
    else:
        trained = fit(config, model, renderer, data, console, tracker, keeper)
    release()
    if not current().first:
        return None
    what = "head fitted" if config.safety.frozen else "trained"
    console.print(f"{what} in {trained.seconds / 60:.1f} min", highlight=False)
    live = SafeModel(trained.model, renderer.tokenizer, trained.parts, plain_card)
    card = keeper.calibrated_card or _calibrated_card(config, live, trained, data, console, tracker)
    export = write_export(config, trained, renderer, card, keeper)
    verify_export(config, live, export, [record.prompt for record in [*data.calibration, *data.requests][:4]])
    console.print(f"exported and verified: {export}", highlight=False)
    return Built(export, data)


def begin(config: TrainConfig, console: Console) -> tuple[Any, Renderer, str]:
    """What every job starts with: checks, threads, seed, and the base model with its renderer and weights' digest.

    Raises ConfigError for settings that cannot work together, or not with this model.
    """
    refuse([*config_problems(config), *carried_problems(config)])
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    torch.manual_seed(config.seed)
    announce(config, console)
    model, renderer = load_model(config)
    refuse(model_problems(config, model))
    return model, renderer, weights_digest(model)


def _calibrated_card(
    config: TrainConfig,
    live: SafeModel,
    trained: TrainedModel,
    data: TrainingData,
    console: Console,
    tracker: Tracker,
) -> SafetyCard:
    """The run's card with thresholds, where there is a verdict and something to calibrate it on."""
    calibration = None
    if config.safety.lambda_cls > 0 and data.calibration:
        verdicts = validation_verdicts(trained, data)
        # Thresholds belong to the numbers that will be compared with them: those of a model loaded as users load it.
        with merged(trained.model), weights_as(trained.model, serving_dtype(config.model.dtype)):
            calibration = calibrate_model(live, data.calibration, request_verdicts(verdicts), config, sayer(console))
        report_calibration(Path(config.run_dir), verdicts, calibration, trained.steps, tracker)
    return safety_card(config, data, calibration)


def prepare_data(config: TrainConfig, model: Any, renderer: Renderer, console: Console) -> TrainingData:
    """The run's data; near-duplicates of evaluation prompts are found by meaning as well."""
    checked = config.data.leak_check.enabled and config.data.evaluation
    encode = SentenceEncoder(offline=config.offline).encode if checked else None
    return prepare(config, model, renderer, sayer(console), encode)


def announce(config: TrainConfig, console: Console) -> None:
    """Says what will happen, and under which licence the model comes."""
    console.print(
        f"[bold]{config.name}[/]: {config.model.path} + {config.data.name} → {config.run_dir}", highlight=False
    )
    if config.model.path in registry():
        note = asset_note(config.model.path)
        console.print(f"  model: {note['origin']} ({note['licence']})", highlight=False)


def load_model(config: TrainConfig, dtype: torch.dtype | None = None) -> tuple[Any, Renderer]:
    """The base model and its renderer; `dtype` None takes that of `model.dtype`."""
    model, tokenizer = load_base(
        base_name(config),
        dtype=dtype or weights_dtype(config),
        attn=config.model.attn,
        chat_template=config.model.chat_template,
        offline=config.offline,
        quantization=quantization(config),
    )
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), Renderer(tokenizer)


def quantization(config: TrainConfig) -> Quantization | None:
    """How the frozen weights are quantised, as `adapter` says."""
    kind = config.adapter.quantization
    return None if kind is None else Quantization(kind, config.adapter.double_quantization)


def weights_dtype(config: TrainConfig) -> torch.dtype:
    """dtype of the loaded weights: bf16 if asked for, or (`auto`) for frozen ones on a GPU that has it; else fp32.

    Weights that are trained themselves (`adapter=none`) stay in fp32; autocast decides what is computed in bf16.
    """
    frozen = config.adapter.name != "none" or config.safety.frozen
    on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    wanted = config.model.dtype == "bf16" or (config.model.dtype == "auto" and on_gpu)
    return torch.bfloat16 if frozen and wanted else torch.float32


def base_name(config: TrainConfig) -> str:
    """The base model's name as exports record it; a tiny random one carries what makes it."""
    if config.model.path == TINY_NAME:
        return f"{TINY_NAME}:{config.model.architecture or 'llama'}:{config.seed}"
    return config.model.path


def write_export(
    config: TrainConfig, trained: TrainedModel, renderer: Renderer, card: SafetyCard, keeper: Keeper
) -> Path:
    """Writes the last checkpoint again, calibrated (the adapter, or all weights without one), and `export/`."""
    common = (trained.model, renderer.tokenizer, trained.parts, card)
    name = base_name(config)
    if keeper.calibrated_card is None:
        seal = keeper.seal_fitted if config.safety.frozen else partial(keeper.seal, step=trained.steps)
        export_model(keeper.folder / step_name(trained.steps), *common, merge=False, base_name=name, extras=seal)
        keeper.tidy()
    extras = partial(write_card, card=card)
    return export_model(Path(config.run_dir) / "export", *common, merge=True, base_name=name, extras=extras)


def verify_export(config: TrainConfig, live: SafeModel, export: Path, prompts: Sequence[Conversation]) -> None:
    """Loads the export and compares its verdicts with the live model's; raises CheckpointError if they differ."""
    dtype = "bf16" if weights_dtype(config) is torch.bfloat16 else "fp32"
    loaded = load(export, dtype=dtype, attn=config.model.attn, offline=config.offline)
    pairs = zip(live.score_logits(prompts), loaded.score_logits(prompts), strict=True)
    apart = max((abs(one - other) / max(1.0, abs(one)) for one, other in pairs), default=0.0)
    if not apart <= (0.2 if dtype == "bf16" else 5e-3):
        raise CheckpointError(
            f"{export} judges requests otherwise than the model in memory (logits up to {apart:.1%} apart): "
            "do not use it; export the run again with python -m safealign.export"
        )


def decoding_options(config: TrainConfig) -> dict[str, Any]:
    """The config's decoding group as keywords of `generate`, for the card's defaults."""
    chosen = asdict(config.decoding)
    unknown = set(chosen) - set(DecodingOptions.__dataclass_fields__)
    if unknown:
        raise ConfigError(f"decoding keys without a meaning: {', '.join(sorted(unknown))}")
    return chosen


def safety_card(config: TrainConfig, data: TrainingData, calibration: CalibrationResult | None) -> SafetyCard:
    """What `safety.json` says of this run; without a calibration it carries no threshold."""
    options = decoding_options(config)
    return SafetyCard(
        head=head_settings(config),
        placement=config.safety.placement,
        window_sees_query=config.safety.windows.sees_query,
        trigger=config.safety.trigger,
        refusal=str(options.pop("refusal")),
        decoding=options,
        thresholds=calibration.thresholds if calibration else {},
        calibration=calibration.card if calibration else {},
        training=data.report | {"base": base_name(config), "recipe": config.name, "seed": config.seed},
        frozen=config.safety.frozen,
    )


def sayer(console: Console) -> Callable[[str], None]:
    """Prints one line of plain text."""
    return lambda text: console.print(text, highlight=False)
