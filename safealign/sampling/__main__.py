"""`python -m safealign.sampling +recipe=llama_lora`: fills the cache with what the recipe's data asks for."""

from __future__ import annotations

import importlib
import sys

from safealign.commands import run_command
from safealign.config.roots import TrainConfig


def main(config: TrainConfig) -> None:
    """Samples what is missing; prints counts and the place, never a text."""
    # The command stands above this room: what it calls is looked up when it runs.
    fill = importlib.import_module("safealign.training.sampling_job").fill_cache
    fill(config)


if __name__ == "__main__":
    sys.exit(run_command(main, record=False))
