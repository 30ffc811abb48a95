"""What libraries print on their own while a command runs, and no user can do anything about."""

from __future__ import annotations

import warnings

import datasets
from transformers.utils import logging


def quiet() -> None:
    """No progress bars of `datasets` and of transformers' files, and no word on a property that TRL asks for by its old
    name.
    """
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
