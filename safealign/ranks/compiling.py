"""What DeepSpeed needs to compile its extension for CPUs, which it does once per machine, in the first run."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def tools_on_path() -> None:
    """Puts the interpreter's own folder first on PATH, as activating its environment would.

    ninja is installed there. Another version of it, found in one run and not in the next, would compile anew each time.
    """
    beside = str(Path(sys.executable).parent)
    others = [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if folder and folder != beside]
    os.environ["PATH"] = os.pathsep.join([beside, *others])


def missing_compiler() -> str | None:
    """The C++ compiler that torch would call (CXX, else c++) where there is none; None where there is."""
    name = os.environ.get("CXX", "c++")
    return name if shutil.which(name) is None else None
