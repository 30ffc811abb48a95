"""What libraries print on their own while a command runs, and no user can do anything about."""

from __future__ import annotations

import warnings

import datasets


def quiet() -> None:
    """No progress bars of `datasets`, and none of TRL's questions to transformers by a property's old name."""
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
