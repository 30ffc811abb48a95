"""Evaluates an export beside baselines; those that need training are trained on the run's own data first."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from omegaconf import OmegaConf
from rich.console import Console

from safealign.config.composing import compose, load_option
from safealign.config.groups import DefenseConfig
from safealign.config.roots import EvaluateConfig, TrainConfig
from safealign.errors import ConfigError
from safealign.evaluation.job import EvaluationJob, Evidence
from safealign.evaluation.systems import OURS, System, ablations
from safealign.model import SafeModel, load
from safealign.reporting.summary import Summary
from safealign.training.pipeline import evidence_of, load_model, prepare_data, run


def evaluate(config: EvaluateConfig, console: Console, command: str) -> Summary | None:
    """Runs the suite on `config.model.path` and writes the report; None for `suite=none`.

    Raises ConfigError when the run that the export belongs to is not at hand and a baseline needs it.
    """
    if config.suite.name == "none":
        console.print("suite=none: nothing to measure")
        return None
    if config.threads:
        torch.set_num_threads(config.threads)
    export = Path(config.model.path)
    trained = read_run_config(export.parent / "config.yaml")
    model = load(export, dtype=config.model.dtype, attn=config.model.attn, offline=config.offline)
    ours = System(OURS, model, _changed_options(config))
    baselines = [baseline(name, trained, export, console) for name in config.baselines]
    evidence = _evidence(config, trained, console)
    job = EvaluationJob(
        [*baselines[:1], ours, *baselines[1:], *ablations(ours, config.suite.ablations)],
        config.suite,
        config.attack,
        Path(str(config.run_dir)) / "report",
        console,
        title=f"{export.parent.name}: {config.suite.name} table",
        command=command,
        judge=config.judge.name,
        offline=config.offline,
        evidence=evidence,
    )
    return job.run()


def baseline(name: str, trained: TrainConfig | None, export: Path, console: Console) -> System:
    """The system called `name` in conf/defense."""
    defense: DefenseConfig = load_option("defense", name)
    if trained is None:
        raise ConfigError(
            f"the baseline {name} needs the run that {export} belongs to: its config.yaml is not beside the export"
        )
    title = name.replace("_", " ")
    if defense.kind == "base":
        base, renderer = load_model(trained)
        return System(title, SafeModel(base, renderer.tokenizer), note="the model before training")
    return System(title, load(trained_baseline(defense, trained, export, console)), {"safety": False}, "plain SFT")


def trained_baseline(defense: DefenseConfig, trained: TrainConfig, export: Path, console: Console) -> Path:
    """The export of a baseline that has to be trained; made when it is missing."""
    if defense.export:
        return Path(defense.export)
    config = _with_changes(trained, defense.training)
    config.run_dir = str(export.parent / "baselines" / defense.name)
    made = Path(config.run_dir) / "export"
    if (made / "manifest.json").exists():
        return made
    console.print(f"training the baseline {defense.name} on the same data", highlight=False)
    return run(config, console)


def _evidence(config: EvaluateConfig, trained: TrainConfig | None, console: Console) -> Evidence | None:
    if trained is None or not config.suite.prompts.everyday:
        return None
    console.print("rebuilding the training requests for the head's baselines (sampled texts come from the cache)")
    model, renderer = load_model(trained)
    return evidence_of(trained, prepare_data(trained, model, renderer, console))


def _changed_options(config: EvaluateConfig) -> dict[str, object]:
    """Decoding keys that the command line set; everything else is the export's own."""
    standard = asdict(compose([f"model={config.model.path}"], "evaluate").decoding)
    return {key: value for key, value in asdict(config.decoding).items() if standard[key] != value}


def read_run_config(path: Path) -> TrainConfig | None:
    """The resolved config that a run wrote; None when there is none."""
    if not path.is_file():
        return None
    merged = OmegaConf.merge(OmegaConf.structured(TrainConfig), OmegaConf.load(path))
    config = OmegaConf.to_object(merged)
    assert isinstance(config, TrainConfig)
    return config


def _with_changes(config: TrainConfig, changes: list[str]) -> TrainConfig:
    merged = OmegaConf.merge(OmegaConf.structured(config), OmegaConf.from_dotlist(changes))
    changed = OmegaConf.to_object(merged)
    assert isinstance(changed, TrainConfig)
    return changed
