"""Starting and stopping the server: Ctrl-C ends live answers and exits with 0."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from safealign.errors import ConfigError

GRACE_SECONDS = 5  # what clients get to read their last event


class Server(uvicorn.Server):
    """uvicorn's server; `on_exit` is called as soon as it is asked to stop.

    uvicorn waits for connections before it ends the app, so without it a long answer would hold the server up.
    """

    def __init__(self, app: FastAPI, on_exit: Callable[[], None]) -> None:
        # No access log and no colours: what a request says is nobody's business, and /metrics counts them.
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        super().__init__(config)
        self._on_exit = on_exit

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal asks to stop."""
        self._on_exit()
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a signal that was obeyed is not raised again afterwards: stopping is no failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet, so that a taken port is known before the model is loaded.

    Raises ConfigError when it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen on {host}, port {port} ({reason}); choose another host= or port=") from error
    return found


def run(app: FastAPI, bound: socket.socket, on_exit: Callable[[], None]) -> None:
    """Serves until SIGINT or SIGTERM."""
    logger = logging.getLogger("safealign.serve")
    if not logger.hasHandlers():
        logger.addHandler(logging.StreamHandler())
    Server(app, on_exit).run(sockets=[bound])
