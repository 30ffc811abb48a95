"""Peak memory of a stretch of work: of the GPU, or of this process where there is none."""

from __future__ import annotations

from pathlib import Path

import torch


def reset_peak() -> None:
    """Starts counting peak memory anew (on Linux, or on a GPU)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peak_memory() -> int:
    """Peak bytes since `reset_peak`: of the GPU, or the process's resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)
