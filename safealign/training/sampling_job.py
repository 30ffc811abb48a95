"""Fills the cache of sampled texts ahead of training."""

from __future__ import annotations

from rich.console import Console

from safealign.assets import cache_dir
from safealign.config.roots import TrainConfig
from safealign.training.pipeline import announce, load_model, sayer
from safealign.training.ranker_data import candidate_folder, candidates
from safealign.training.ranker_job import base_model
from safealign.training.self_made import sample
from safealign.training.sources import load_sources


def fill_cache(config: TrainConfig) -> None:
    """Samples what `data.sampling` asks for; what is cached already is kept, and what was cut off goes on."""
    console = Console()
    announce(config, console)
    if config.objective.name == "srr":
        _fill_candidates(config, console)
        return
    model, renderer = load_model(config)
    sampled = sample(config, model, renderer, load_sources(config), sayer(console))
    counts = ", ".join(f"{len(records)} {kind}" for kind, records in vars(sampled).items() if records)
    console.print(f"{counts or 'nothing was asked for: 0 records'} lie in {cache_dir() / 'sampled'}", highlight=False)


def _fill_candidates(config: TrainConfig, console: Console) -> None:
    model = base_model(config)
    lm = model.hf if model.parts is None else model.parts.lm
    answers = candidates(config, lm, model.renderer, sayer(console))
    console.print(f"{len(answers)} candidate answers lie in {candidate_folder()}", highlight=False)
