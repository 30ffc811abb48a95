"""Is an error a full disk? Each library says it in its own way."""

from __future__ import annotations

import errno

_SAFETENSORS = ("No space left on device", "os error 28", "os error 122")
# torch's zip writer loses the reason, and stumbles over the file's length as it closes it.
_TORCH = ("PytorchStreamWriter failed writing", "iostream error", "inline_container")


def full_disk(error: BaseException) -> str | None:
    """`the disk is full` for ENOSPC or a used-up quota anywhere in the chain of causes; None for something else.

    `probably` where the library that failed to write does not say why.
    """
    seen: BaseException | None = error
    probably = None
    while seen is not None:
        if getattr(seen, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(w in str(seen) for w in _SAFETENSORS):
            return "the disk is full"
        if any(word in str(seen) for word in _TORCH):
            probably = "the disk is probably full"
        seen = seen.__cause__ or seen.__context__
    return probably
