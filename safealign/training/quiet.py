"""What libraries print on their own while a command runs, and no user can do anything about."""

from __future__ import annotations

import os
import warnings

import datasets
import torch
from transformers.utils import logging


def quiet() -> None:
    """No progress bars of `datasets` and of transformers' files, no word on a property that TRL asks for by its old
    name, and none of DeepSpeed, which is imported wherever it is installed, on a GPU that is not there.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
