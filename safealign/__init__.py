"""Safety alignment of causal language models with an explicit safety signal."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# TRL asks a hub at start-up otherwise; nothing here ever reports home.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
__all__ = ["SafeModel", "custom_generate", "load"]

if TYPE_CHECKING:
    from safealign.generation import custom_generate
    from safealign.model import SafeModel, load


def __getattr__(name: str) -> Any:
    """What is public is imported on first use, so that `import safealign` stays quick."""
    if name in __all__:
        room = import_module(f"safealign.{'generation' if name == 'custom_generate' else 'model'}")
        return getattr(room, name)
    raise AttributeError(f"module 'safealign' has no attribute '{name}'")
