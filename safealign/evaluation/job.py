"""One evaluation from systems to report: the suite, the tables of head and windows, pictures, summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from safealign.config.groups import AttackConfig, SuiteConfig
from safealign.data.records import Record
from safealign.data.templates import load_templates
from safealign.data.wrapping import generic_templates, split
from safealign.decoding.options import DecodingOptions
from safealign.evaluation.cells import Cell
from safealign.evaluation.gate_effect import gate_effect
from safealign.evaluation.head_table import (
    Features,
    HeadSets,
    cached,
    fold_row,
    head_grid,
    head_row,
    linear_baseline,
    prototype_baseline,
    wrapped_set,
)
from safealign.evaluation.judge_check import judge_note
from safealign.evaluation.metrics.calibration import threshold
from safealign.evaluation.pair_folds import Fit, Score
from safealign.evaluation.pictures import draw
from safealign.evaluation.sets import load_set
from safealign.evaluation.suite import Prompts, SuiteResult, attacks_of, fill, run_suite
from safealign.evaluation.systems import System
from safealign.evaluation.window_table import WindowAnswers, window_grid, window_row_figures
from safealign.judges.encoder import SentenceEncoder
from safealign.layout import build_layout, request_row
from safealign.model import SafeModel
from safealign.modeling.attach import SafetyParts
from safealign.modeling.features import feature_columns, layout_features
from safealign.modeling.safety_token import HeadSettings
from safealign.reporting.summary import Summary
from safealign.reporting.tables import show_summary

_GATED = 16  # pairs of requests whose slots are swapped
# Where the plain probe of frozen states reads.
MID_DEPTH = HeadSettings((0.5,), ("last", "mean"))


@dataclass
class Evidence:
    """What the head's table needs besides the systems.

    `requests` and `calibration`: training requests and calibration units of the run. `frozen`: the model before
    training with a fresh safety token, to be read as our head reads. `pairs`: every contrast pair there is.
    """

    requests: Sequence[Record]
    calibration: Sequence[Record]
    frozen: SafetyParts | None
    pairs: Sequence[Record]
    budget: float
    confidence: float


@dataclass
class EvaluationJob:
    """`systems`: the undefended model first, ours second, then others. `evidence` None leaves the head table out.

    Where ours has no verdict (`System.guarded`), what is said of head, windows and gate is left out.
    `cells` and `pictures`: what was measured and drawn, once it has run.
    """

    systems: Sequence[System]
    suite: SuiteConfig
    attack: AttackConfig
    folder: Path
    console: Console
    title: str
    command: str
    judge: str = "refusal_matcher"
    offline: bool = False
    evidence: Evidence | None = None
    cells: list[Cell] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)

    def run(self) -> Summary:
        """Measures everything, writes `summary.json`, `summary.md` and pictures, prints the tables."""
        undefended, ours = self.systems[0], self.systems[1]
        prompts = Prompts.load(self.suite, self.offline)
        attacks = attacks_of(self.attack, ours.model.tokenizer)
        keep = [(undefended.name, "direct"), (undefended.name, "benign"), (ours.name, "benign"), (ours.name, "direct")]
        cells = self.folder / "cells"
        result = run_suite(self.systems, prompts, attacks, self.suite, cells, self.console, self.judge, keep)
        summary = Summary(self.title, self.command)
        fill(summary, result, self.systems, attacks)
        scores: dict[str, list[float]] = {}
        if self.evidence is not None and ours.guarded and self.suite.prompts.everyday:
            self.console.print("  the head, beside its baselines", highlight=False)
            sets = self._head_sets(prompts)
            summary.grids["head"], scores = self._head(sets)
        if ours.guarded:
            self.console.print("  the windows", highlight=False)
            self._windows(summary, result, prompts)
        self._notes(summary, prompts)
        summary.write(self.folder)
        self.cells = list(result.cells.values())
        self.pictures = draw(self.folder, summary, ours.model, scores)
        show_summary(summary, self.console)
        return summary

    def _head_sets(self, prompts: Prompts) -> HeadSets:
        assert self.evidence is not None
        n = self.suite.prompts
        _, held_out = split((*load_templates(offline=self.offline), *generic_templates()))
        return HeadSets(
            harmful=load_set("harmful", offline=self.offline),
            benign=load_set("benign", offline=self.offline)[: 2 * n.benign],
            over_refusal=load_set("over_refusal", offline=self.offline),
            pairs=load_set("pairs", offline=self.offline),
            everyday=load_set("everyday", n.everyday, self.offline),
            wrapped=wrapped_set(prompts.harmful, prompts.benign, held_out, n.harmful),
        )

    def _head(self, sets: HeadSets) -> tuple[Any, dict[str, list[float]]]:
        assert self.evidence is not None
        ours = self.systems[1]
        own = _model_score(ours.model)
        rows = {ours.name: head_row(own, sets, _theta_query(ours.model))}
        for system in self._beside():
            rows[system.name] = head_row(_model_score(system.model), sets, _theta_query(system.model))
        for name, fit in self._baselines(ours.model).items():
            folds = fold_row(fit, self.evidence.requests, self.evidence.pairs)
            score = fit(self.evidence.requests)
            rows[name] = head_row(score, sets, self._theta(score)) | folds
        scores = {
            "HarmBench": own(sets.harmful).tolist(),
            "benign": own(sets.benign).tolist(),
            "over-refusal": own(sets.over_refusal).tolist(),
            "everyday": own(sets.everyday).tolist(),
        }
        return head_grid(rows), scores

    def _theta(self, score: Score) -> float | None:
        """A baseline's threshold, from the units and with the promise that ours has."""
        assert self.evidence is not None
        units = self.evidence.calibration
        return threshold(score(units), self.evidence.budget, self.evidence.confidence).logit if units else None

    def _beside(self) -> list[System]:
        """Other exports with verdicts of their own that stand in the table."""
        ours = self.systems[1].model
        return [system for system in self.systems[2:] if system.guarded and system.model is not ours]

    def _baselines(self, model: SafeModel) -> dict[str, Fit]:
        """Heads to fit, by name: regressions and prototypes on our head's states and mid-depth ones, and embeddings."""
        found: dict[str, Fit] = {}
        frozen = self.evidence.frozen if self.evidence else None
        if {"frozen", "prototype"} & {*self.suite.head_baselines} and frozen is not None:
            states = cached(frozen_features(frozen, model))
            assert model.parts is not None
            for name, reads in (
                ("our head's states, before training", model.parts.settings),
                ("frozen states, mid-depth", MID_DEPTH),
            ):
                chosen = feature_columns(frozen.settings, reads, len(frozen.layers), frozen.hidden_size)
                columns = partial(_some_columns, states, chosen)
                if "frozen" in self.suite.head_baselines:
                    found[name] = partial(linear_baseline, columns)
                if "prototype" in self.suite.head_baselines:
                    found[f"prototypes of {name}"] = partial(prototype_baseline, columns)
        if "minilm" in self.suite.head_baselines:
            encoder = SentenceEncoder(offline=self.offline)
            embeddings = cached(lambda records: encoder.encode([r.request for r in records]))
            found["MiniLM embeddings"] = partial(linear_baseline, embeddings)
        return found

    def _windows(self, summary: Summary, result: SuiteResult, prompts: Prompts) -> None:
        undefended, ours = self.systems[0], self.systems[1]
        answered = result.cells[undefended.name, "direct"].succeeded
        hosts = prompts.benign
        if not hosts:
            summary.notes.append("The windows' table needs benign prompts; this suite has none.")
            return
        harmful = [
            (hosts[i % len(hosts)], list(out.tokens))
            for i, out in enumerate(result.outputs[undefended.name, "direct"])
            if answered[i]
        ]
        refusals = [
            (hosts[i % len(hosts)], list(out.tokens))
            for i, out in enumerate(result.outputs[ours.name, "direct"])
            if out.refused
        ]
        own = result.outputs[ours.name, "benign"]
        benign = [(record, list(out.tokens)) for record, out in zip(hosts, own, strict=True) if not out.refused]
        if not (harmful and benign):
            summary.notes.append("The windows' table needs harmful and benign answers; this suite gave none.")
            return
        answers = WindowAnswers(harmful, benign, refusals)
        figures = {system.name: window_row_figures(system, answers) for system in (ours, *self._beside())}
        summary.grids["windows"] = window_grid(figures, ours.model.options.schedule)

    def _notes(self, summary: Summary, prompts: Prompts) -> None:
        summary.notes.append(judge_note(self.offline))
        if not self.systems[1].guarded:
            summary.notes.append(f"{self.systems[1].name} answers without a verdict: no rule, no gate.")
        elif not _options_of(self.systems[1]).gate:
            summary.notes.append("The gate is closed: no text sees the safety token, and decoding does all the work.")
        elif prompts.harmful and prompts.benign:
            effect = gate_effect(self.systems[1].model, prompts.harmful[:_GATED], prompts.benign[:_GATED])
            summary.notes.append(
                "The gate: with the slot of a harmful request instead of a benign one's, the log-probability of the "
                f"trigger's first token changes by {effect} nats."
            )
        card = self.systems[1].model.card
        if card is not None and card.calibration.get("note"):
            units = card.calibration.get("distribution")
            named = f"; units: {units}" if units else ""
            summary.notes.append(f"Thresholds: {card.calibration['note']}{named}.")
        if card is not None:
            summary.meta["training"] = card.training
        summary.meta["machine"] = machine()


def frozen_features(parts: SafetyParts, model: SafeModel) -> Any:
    """Request features of an untouched model, as the head of `parts` reads them."""

    def features(records: Sequence[Record]) -> torch.Tensor:
        """`[N, F]`, one row for each request."""
        prompts = [model.renderer.render(record.prompt) for record in records]
        layouts = [build_layout(p, [request_row(p, model.rows.placement)]) for p in prompts]
        found = layout_features(parts, [p.input_ids for p in prompts], layouts)
        return torch.cat(found)

    return features


def _options_of(system: System) -> DecodingOptions:
    """The options under which a system is decoded."""
    return system.model.options.override(system.options)


def _theta_query(model: SafeModel) -> float | None:
    return model.options.rules(model.thresholds).theta_query


def _some_columns(states: Features, columns: torch.Tensor, records: Sequence[Record]) -> torch.Tensor:
    return states(records)[:, columns]


def _model_score(model: SafeModel) -> Score:
    return cached(lambda records: torch.tensor(model.score_logits([record.prompt for record in records])))


def machine() -> str:
    """What the figures were measured on."""
    import os
    import platform

    name = next(
        (line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")), platform.processor()
    )
    return f"{os.cpu_count()} × {name or platform.machine()}, torch {torch.__version__}"


def _cpu_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
