"""Who calls rank 0 and has not yet said who it is: all are heard at once, so that a silent one holds up no other."""

from __future__ import annotations

import selectors
import socket
import time
from contextlib import suppress
from typing import Any

# How long a caller may take to say who it is, in seconds, and how many may be about it at once.
PATIENCE, AT_ONCE = 5.0, 256


class Callers:
    """Hears callers at `listener` say their `length` bytes, which only the reader of `hear` makes sense of."""

    def __init__(self, listener: socket.socket, length: int) -> None:
        self._listener, self._length = listener, length
        self._said: dict[socket.socket, bytes] = {}
        self._until: dict[socket.socket, float] = {}
        self._selector = selectors.DefaultSelector()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)

    def hear(self, seconds: float) -> list[tuple[socket.socket, bytes]]:
        """Who has said all within the next moment (at most `seconds`), and what; nothing behind it is read."""
        found = []
        for key, _ in self._selector.select(min(seconds, 0.1)):
            peer: Any = key.fileobj
            if peer is self._listener:
                self._accept()
            elif self._hear(peer):
                self._selector.unregister(peer)
                del self._until[peer]
                found.append((peer, self._said.pop(peer)))
        late = [peer for peer, until in self._until.items() if until < time.monotonic()]
        for peer in late or list(self._until)[: max(0, len(self._until) - AT_ONCE)]:  # the oldest come first
            self._send_away(peer)
        return found

    def close(self) -> None:
        """Hears nobody any more; those who have said all stay connected."""
        for peer in list(self._until):
            self._send_away(peer)
        self._selector.close()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # it has hung up already
            peer, _ = self._listener.accept()
            peer.setblocking(False)
            self._selector.register(peer, selectors.EVENT_READ)
            self._said[peer], self._until[peer] = b"", time.monotonic() + PATIENCE

    def _hear(self, peer: socket.socket) -> bool:
        """Was that all? One who hangs up before is sent away."""
        try:
            more = peer.recv(self._length - len(self._said[peer]))
        except BlockingIOError:
            return False
        except OSError:
            more = b""
        self._said[peer] += more
        if not more:
            self._send_away(peer)
        return bool(more) and len(self._said[peer]) == self._length

    def _send_away(self, peer: socket.socket) -> None:
        self._selector.unregister(peer)
        del self._said[peer], self._until[peer]
        peer.close()
