"""Evaluates an export beside baselines; those that need training are trained on the run's own data first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from yaml import YAMLError

from safealign.config.composing import decoding_changes, load_option, to_yaml
from safealign.config.groups import DefenseConfig
from safealign.config.roots import EvaluateConfig, TrainConfig
from safealign.data.rendering import Renderer
from safealign.errors import ConfigError
from safealign.evaluation.job import MID_DEPTH, EvaluationJob, Evidence
from safealign.evaluation.pair_folds import all_pairs
from safealign.evaluation.systems import OURS, System, ablations
from safealign.files import write_text
from safealign.model import SafeModel, load
from safealign.modeling.attach import attach
from safealign.modeling.checkpoint import CARD_FILE
from safealign.modeling.loading import load_base
from safealign.modeling.manifest import MANIFEST_FILE
from safealign.modeling.safety_token import HeadSettings
from safealign.reporting.summary import Summary
from safealign.training.cards import add_results
from safealign.training.checks import is_export
from safealign.training.memory import release
from safealign.training.pipeline import Built, build, load_model, prepare_data
from safealign.training.prepare import TrainingData
from safealign.training.samples import COLUMNS, final_figures, sample_rows
from safealign.training.tracking import Tracker


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
    trained = read_run_config(export.parent / "config.yaml", config.offline)
    model = load(export, dtype=config.model.dtype, attn=config.model.attn, offline=config.offline)
    ours = our_system(model, trained, decoding_changes(config.decoding))
    shelf = Shelf(trained, model, export, console)
    title = f"{export.parent.name or export.name}: {config.suite.name} table"
    evidence = _evidence(config, shelf) if ours.guarded else None
    return _report(config, ours, shelf, evidence, title, command, Path(str(config.run_dir)))


def evaluate_built(
    config: TrainConfig, built: Built, console: Console, command: str, tracker: Tracker | None = None
) -> Summary | None:
    """The table that training ends with: the export, loaded from disk, beside the baselines; None for `suite=none`."""
    if config.suite.name == "none":
        return None
    release()
    console.print(f"evaluation: {config.suite.name} suite", highlight=False)
    model = load(built.export, dtype=config.model.dtype, attn=config.model.attn, offline=config.offline)
    shelf = Shelf(config, model, built.export, console)
    ours = our_system(model, config)
    evidence = shelf.evidence(built.data) if ours.guarded else None
    return _report(config, ours, shelf, evidence, config.name, command, Path(config.run_dir), tracker)


def our_system(model: SafeModel, run: TrainConfig | None, changes: Mapping[str, Any] | None = None) -> System:
    """The export as the table's own row; where λ = 0 trained no verdict, without the rules that would go by one."""
    if run is not None and run.safety.lambda_cls == 0:
        return System(OURS, model, {**(changes or {}), "safety": False}, "λ = 0: no verdict was trained")
    return System(OURS, model, changes or {})


@dataclass
class Shelf:
    """The systems that stand beside ours, made from the run that our export belongs to (None: not at hand)."""

    run: TrainConfig | None
    ours: SafeModel
    export: Path
    console: Console

    def system(self, name: str) -> System:
        """The system called `name` in conf/defense, or another export by its path, under rules of its own."""
        if is_export(name):
            return System(_title(Path(name)), load(name, dtype=self._dtype_name), {}, "another export")
        if "/" in name:
            raise ConfigError(f"baselines: {name} is no export: give the folder that has {CARD_FILE} in it")
        defense: DefenseConfig = load_option("defense", name)
        title = name.replace("_", " ")
        if defense.kind == "base":
            base, renderer = self.base
            return System(title, SafeModel(base, renderer.tokenizer), {}, "the model before training")
        if defense.kind == "none":
            raise ConfigError(f"the defense {name} is no system of its own: take it out of baselines")
        if self.run is None and not defense.export:
            raise ConfigError(f"the baseline {name} needs {self.export.parent / 'config.yaml'}, which is not there")
        made = None if defense.export else trained_baseline(defense, self.run, self.export, self.console)
        folder = made or Path(str(defense.export))
        return System(title, load(folder, dtype=self._dtype_name), {"safety": False}, "plain SFT")

    @cached_property
    def base(self) -> tuple[Any, Renderer]:
        """The model before training, in the dtype that ours is measured in."""
        if self.run is not None:
            return load_model(self.run, self.ours.hf.dtype)
        card = self.ours.card
        name = card.training.get("base") if card is not None else None
        if not name:
            raise ConfigError(
                f"{self.export} does not say which model it was trained from, and no config.yaml lies beside it: "
                "evaluate it in the folder of its run"
            )
        model, tokenizer = load_base(
            str(name), dtype=self.ours.hf.dtype, chat_template=self.ours.tokenizer.chat_template
        )
        return model.to(self.ours.hf.device), Renderer(tokenizer)

    def evidence(self, data: TrainingData) -> Evidence:
        """Training requests, calibration units and the frozen base model, for the head's baselines."""
        assert self.run is not None
        base, renderer = self.base
        head = self.run.safety.head
        reads = HeadSettings((*head.layers, *MID_DEPTH.layers), tuple(dict.fromkeys((*head.pool, *MID_DEPTH.pool))))
        frozen = attach(base, reads, self.run.safety.init, renderer.content_ids("assistant"))
        settings = self.run.safety.calibration
        share = 1.0 - settings.window_share  # the request's, of budget and error probability
        confidence = 1.0 - settings.error_probability * share
        pairs = all_pairs(self.run.offline)
        return Evidence(data.requests, data.calibration, frozen, pairs, settings.budget * share, confidence)

    @property
    def _dtype_name(self) -> str:
        return "bf16" if self.ours.hf.dtype is torch.bfloat16 else "fp32"


def _report(
    config: EvaluateConfig | TrainConfig,
    ours: System,
    shelf: Shelf,
    evidence: Evidence | None,
    title: str,
    command: str,
    run_dir: Path,
    tracker: Tracker | None = None,
) -> Summary:
    if not config.baselines:
        raise ConfigError("baselines=[]: a table needs a system to stand beside ours, such as baselines=[undefended]")
    baselines = [shelf.system(name) for name in config.baselines]
    names = [OURS, *(system.name for system in baselines)]
    if len(set(names)) < len(names):
        raise ConfigError(f"baselines: two rows of one table have the same name: {', '.join(names)}")
    without_a_part = ablations(ours, config.suite.ablations) if ours.guarded else []
    systems = [*baselines[:1], ours, *baselines[1:], *without_a_part]
    job = EvaluationJob(
        systems,
        config.suite,
        config.attack,
        run_dir / "report",
        shelf.console,
        title=title,
        command=command,
        judge=config.judge.name,
        offline=config.offline,
        evidence=evidence,
    )
    summary = job.run()
    if tracker is not None:
        tracker.figures(final_figures(summary))
        tracker.table("samples/outcomes", COLUMNS, sample_rows(ours, job.cells))
        for picture in job.pictures:
            tracker.picture(f"report/{picture.stem}", picture)
    if ours.model.card is not None and (shelf.export / MANIFEST_FILE).is_file():
        add_results(shelf.export, ours.model.card, summary)
    return summary


def _title(export: Path) -> str:
    """The name of an export's run."""
    folder = export.resolve()
    return folder.parent.name if folder.name == "export" else folder.name


def trained_baseline(defense: DefenseConfig, trained: TrainConfig | None, export: Path, console: Console) -> Path:
    """The export of a baseline that has to be trained; made when it is missing."""
    assert trained is not None
    if trained.safety.frozen:
        raise ConfigError(
            f"the baseline {defense.name} trains the model, which this run left as it was: leave it out, or name the "
            "export of one that was trained by its path"
        )
    config = _with_changes(trained, defense.training)
    config.run_dir = str(export.parent / "baselines" / defense.name)
    made = Path(config.run_dir) / "export"
    if (made / MANIFEST_FILE).exists():
        return made
    console.print(f"training the baseline {defense.name} on the same data", highlight=False)
    write_text(Path(config.run_dir) / "config.yaml", to_yaml(config))
    built = build(config, console)
    assert built is not None
    return built.export


def _evidence(config: EvaluateConfig, shelf: Shelf) -> Evidence | None:
    if shelf.run is None or not config.suite.prompts.everyday:
        return None
    shelf.console.print("rebuilding the training requests for the head's baselines (sampled texts come from the cache)")
    model, renderer = load_model(shelf.run)
    return shelf.evidence(prepare_data(shelf.run, model, renderer, shelf.console))


def read_run_config(path: Path, offline: bool = False) -> TrainConfig | None:
    """The resolved config that a run wrote, `offline` if either is; None when there is none.

    Raises ConfigError for one that this version cannot read.
    """
    if not path.is_file():
        return None
    try:
        merged = OmegaConf.merge(OmegaConf.structured(TrainConfig), OmegaConf.load(path))
        config = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, YAMLError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(f"{path} was not written by this version ({first}): train the run again") from error
    assert isinstance(config, TrainConfig)
    config.offline = config.offline or offline
    return config


def _with_changes(config: TrainConfig, changes: list[str]) -> TrainConfig:
    merged = OmegaConf.merge(OmegaConf.structured(config), OmegaConf.from_dotlist(changes))
    changed = OmegaConf.to_object(merged)
    assert isinstance(changed, TrainConfig)
    return changed
