"""Which number format a device computes in."""

from __future__ import annotations

from pathlib import Path

import torch


def compute_dtype(precision: str) -> torch.dtype | None:
    """Autocast dtype for `precision`: bf16, fp32 (None: no autocast), or auto (bf16 where the device is good at it)."""
    if precision == "fp32":
        return None
    if precision == "bf16":
        return torch.bfloat16
    return torch.bfloat16 if has_fast_bf16() else None


def has_fast_bf16() -> bool:
    """Whether the GPU, or else the CPU, multiplies bf16 natively (AMX or AVX-512 BF16)."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
