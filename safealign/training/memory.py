"""Memory that one stage of a job has freed, given back before the next stage asks for its own."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress


def release() -> None:
    """Collects cycles (a trainer, its optimiser and its model hold each other) and empties the C library's arenas.

    glibc keeps freed blocks for itself unless it is asked; other C libraries have no such call and need none.
    """
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
