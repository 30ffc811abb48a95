"""What `safealign.validate` looks at for objective=srr: config, sources and model; nothing is sampled or trained."""

from __future__ import annotations

from rich.console import Console

from safealign.config.roots import TrainConfig
from safealign.training.checks import config_notes, config_problems
from safealign.training.pipeline import sayer
from safealign.training.ranker_data import candidate_settings, ranker_settings
from safealign.training.ranker_job import base_model, ranker_problems
from safealign.training.sources import collect_sources
from safealign.training.validating import attempt


def validate_ranker(config: TrainConfig, console: Console) -> list[str]:
    """Every problem of config, sources and model; says what would be sampled where there is none."""
    problems = [*config_problems(config), *ranker_problems(config)]
    for note in config_notes(config):
        console.print(f"note: {note}", highlight=False)
    records, faults = attempt(lambda: collect_sources(config, sayer(console)), ([], []), problems)
    problems += faults
    model = attempt(lambda: base_model(config), None, problems)
    if model is not None and not problems:
        wanted, width = candidate_settings(config), model.extractor().shape[-1]
        labelled = {label: sum(r.label == label for r in records) for label in ("malicious", "benign")}
        asked = {label: min(n, getattr(wanted, label)) for label, n in labelled.items()}
        console.print(
            f"candidates: {wanted.per_request} answers to each of {asked['malicious']} malicious and "
            f"{asked['benign']} benign requests, at most; a ranker of {ranker_settings(config).parameters(width):,} "
            "parameters",
            highlight=False,
        )
    return problems
