"""How long a rank is in collectives while it trains: DDP's all-reduces of gradients, and accelerate's gathers.

Measured by the host's clock, and so on CPUs alone: on a GPU collectives run in streams of their own, which the host
does not see. Waiting for a slower rank is in it, and so is what overlaps with the backward pass.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel


class Collectives:
    """Counts `seconds` during which at least one collective was under way; several at once count once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._under_way, self._since = 0, 0.0
        self._lock = threading.Lock()

    @classmethod
    def of(cls, model: Any, accelerator: Any) -> Collectives | None:
        """Begins to watch a model under DDP and its accelerator; None for others, and on a GPU."""
        if not isinstance(model, DistributedDataParallel) or accelerator.device.type != "cpu":
            return None
        found = cls()
        # A lambda, for DDP compares annotations with classes, and ours are strings.
        model.register_comm_hook(found, lambda state, bucket: _all_reduce(state, bucket))
        accelerator.gather = found.timed(accelerator.gather)
        return found

    def timed(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        """The collective, which returns when it is over, counted."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.begin()
            try:
                return collective(*args, **kwargs)
            finally:
                self.end()

        return counted

    def begin(self) -> None:
        """One more is under way."""
        with self._lock:
            if not self._under_way:
                self._since = time.monotonic()
            self._under_way += 1

    def end(self) -> None:
        """One is over."""
        with self._lock:
            self._under_way -= 1
            if not self._under_way:
                self.seconds += time.monotonic() - self._since


def _all_reduce(collectives: Collectives, bucket: Any) -> torch.futures.Future[torch.Tensor]:
    """DDP's own, counted from the bucket's handing over to its result."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    def done(future: torch.futures.Future[torch.Tensor]) -> torch.Tensor:
        collectives.end()
        return future.value()

    collectives.begin()
    return allreduce_hook(None, bucket).then(done)  # type: ignore[arg-type]
