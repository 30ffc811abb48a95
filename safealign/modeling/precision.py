"""Which number format a device computes in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from safealign.errors import ConfigError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def compute_dtype(precision: str) -> torch.dtype | None:
    """Autocast dtype for `precision`: bf16, fp32 (None: no autocast), or auto (bf16 where the device is good at it)."""
    if precision == "fp32":
        return None
    if precision == "bf16":
        return torch.bfloat16
    return torch.bfloat16 if has_fast_bf16() else None


def serving_dtype(name: str) -> torch.dtype:
    """dtype of the weights of a model to answer with: fp32, bf16, fp16, or auto (bf16 where the device is good at it).

    Raises ConfigError for another name.
    """
    if name == "auto":
        return torch.bfloat16 if has_fast_bf16() else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"dtype must be one of auto, {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


@contextmanager
def weights_as(model: nn.Module, dtype: torch.dtype, keep: str = "safety_") -> Iterator[None]:
    """While open, the model's floating-point weights are in `dtype`; those of modules named `keep…` stay as they are.

    The very same tensors are put back afterwards, so that nothing is rounded.
    """
    chosen = [p for name, p in model.named_parameters() if p.is_floating_point() and not _under(name, keep)]
    before = [parameter.data for parameter in chosen]
    try:
        for parameter in chosen:
            parameter.data = parameter.data.to(dtype)
        yield
    finally:
        for parameter, data in zip(chosen, before, strict=True):
            parameter.data = data


def _under(name: str, prefix: str) -> bool:
    return any(part.startswith(prefix) for part in name.split("."))


def has_fast_bf16() -> bool:
    """Whether the GPU, or else the CPU, multiplies bf16 natively (AMX or AVX-512 BF16)."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
