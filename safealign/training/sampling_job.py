"""Fills the cache of sampled texts ahead of training."""

from __future__ import annotations

from rich.console import Console

from safealign.assets import cache_dir
from safealign.config.roots import TrainConfig
from safealign.training.pipeline import announce, load_model, sayer
from safealign.training.prepare import sample
from safealign.training.sources import load_sources


def fill_cache(config: TrainConfig) -> None:
    """Samples what `data.sampling` asks for; what is cached already is kept."""
    console = Console()
    announce(config, console)
    model, renderer = load_model(config)
    sampled = sample(config, model, renderer, load_sources(config), sayer(console))
    console.print(
        f"{len(sampled.everyday)} everyday requests, {len(sampled.compliant)} compliant answers and "
        f"{len(sampled.answers)} answers to benign requests lie in {cache_dir() / 'sampled'}",
        highlight=False,
    )
