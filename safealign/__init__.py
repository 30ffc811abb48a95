"""Safety alignment of causal language models with an explicit safety signal."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# TRL asks a hub at start-up otherwise; nothing here ever reports home.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
__all__ = ["SafeModel", "load"]

if TYPE_CHECKING:
    from safealign.model import SafeModel, load


def __getattr__(name: str) -> Any:
    """`load` and `SafeModel` are imported on first use, so that `import safealign` stays quick."""
    if name in __all__:
        from safealign import model

        return getattr(model, name)
    raise AttributeError(f"module 'safealign' has no attribute '{name}'")
