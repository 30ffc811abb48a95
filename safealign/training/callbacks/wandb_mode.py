"""Sets Weights & Biases up so that it never blocks and never uploads unasked."""

from __future__ import annotations

import os
from pathlib import Path

from safealign.config.roots import TrainConfig


def prepare_wandb(config: TrainConfig) -> None:
    """Environment for the W&B callback: offline without a key (or with `offline=true`), files under the run.

    An offline run is uploaded later, by choice, with `wandb sync RUN_DIR/wandb/offline-run-*`.
    """
    mode = config.logger.mode
    if mode == "auto":
        mode = "online" if os.environ.get("WANDB_API_KEY") and not config.offline else "offline"
    Path(config.run_dir).mkdir(parents=True, exist_ok=True)
    os.environ["WANDB_MODE"] = mode
    os.environ["WANDB_DIR"] = str(Path(config.run_dir).resolve())
    os.environ.setdefault("WANDB_PROJECT", config.logger.project or "safealign")
    os.environ["WANDB_SILENT"] = "true"
    os.environ["WANDB_LOG_MODEL"] = "false"
    os.environ["WANDB_WATCH"] = "false"
    os.environ["WANDB_DISABLE_CODE"] = "true"
