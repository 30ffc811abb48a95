"""A line between the ranks: when one ends without a goodbye, all others stop with a sentence that names it.

The collectives of training cannot do that. gloo says that a connection broke, and not whose; NCCL may wait for half an
hour; a machine that has lost its network says nothing. So every rank holds one TCP connection to rank 0 on which almost
nothing is sent. The kernel closes it when its process dies, and asks by itself whether the other machine is still
there, however busy either Python is.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from safealign.errors import RankError
from safealign.ranks.world import World

# How long a machine may be out of reach before the others give it up, in seconds.
LOST_SECONDS, LOST_VARIABLE = 30.0, "SAFEALIGN_LOST_SECONDS"
# How long the main thread has to end by itself, with the same sentence: in a collective it may never wake up.
GRACE = 3.0
_POLL = 0.5
_BYE = "bye"
_AGAIN = "start every rank again as before, and the job goes on from its last whole checkpoint"


class Lifeline:
    """One rank's end of it. `peers`: on rank 0 a connection for each other rank, elsewhere the one to rank 0, each with
    the name that messages call it by.

    `end`: called in a thread of its own with the sentence, when the main thread has not closed the line within `grace`
    seconds of it.
    """

    def __init__(
        self,
        world: World,
        peers: Mapping[socket.socket, str],
        end: Callable[[str], None] | None = None,
        grace: float = GRACE,
    ) -> None:
        self._all, self._peers, self._texts = tuple(peers), dict(peers), dict.fromkeys(peers, b"")
        self._end = end or (lambda sentence: _leave(world, sentence))
        self._grace, self._seconds = grace, lost_seconds()
        self._verdict, self._told, self._closed = "", threading.Event(), threading.Event()
        self._parted = False
        self._sending = threading.Lock()
        for peer in peers:
            _keep_alive(peer, self._seconds)
        _OPEN.add(self)
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()

    def verdict(self, seconds: float = 0.0) -> str:
        """Why the job cannot go on, waiting up to `seconds` for it; nothing while all ranks are well."""
        self._told.wait(seconds)
        return self._verdict

    def tell(self, sentence: str) -> None:
        """Lets all others stop, because this rank does."""
        self._send(" ".join(sentence.split()))

    def part(self) -> None:
        """Says goodbye: from now on nobody misses this rank, which goes on missing the others and hearing them."""
        if not self._parted and not self._verdict:
            self._parted = True
            self._send(_BYE)

    def close(self) -> None:
        """Says goodbye, and this rank misses nobody from now on."""
        if not self._closed.is_set():
            self._closed.set()
            self.part()

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for peer in self._peers:
                selector.register(peer, selectors.EVENT_READ)
            # Even when all have said goodbye: they listen on, and would miss this end of the line.
            while not self._closed.is_set() and not self._verdict:
                for key, _ in selector.select(_POLL):
                    if self._hear(key.fileobj):
                        selector.unregister(key.fileobj)
        if self._verdict and not self._closed.wait(self._grace):
            self._end(self._verdict)
        for peer in self._all:
            peer.close()

    def _hear(self, peer: Any) -> bool:
        """Reads what `peer` sends: a goodbye, a sentence to stop with, or the end of the line. Is that its last?"""
        name, reason = self._peers[peer], "has ended without a word: its process was killed, or its machine went down"
        try:
            text = peer.recv(65536)
        except ConnectionError:
            text = b""
        except OSError:  # above all TimeoutError, after which the kernel has given it up
            text, reason = b"", f"has not answered for {self._seconds:g} s: its machine or the network to it is down"
        self._texts[peer] += text
        line, complete, _ = self._texts[peer].partition(b"\n")
        if text and not complete:
            return False
        said = line.decode("utf-8", "replace") if complete else f"{name} {reason}; {_AGAIN}"
        if said == _BYE:
            return True  # it is still told what the others are
        del self._peers[peer]
        if not self._closed.is_set() and not self._verdict:
            self._verdict = said
            self._told.set()
            self._send(said)
        return True

    def _send(self, line: str) -> None:
        """To every rank at the other ends; one that is gone or full is passed over."""
        with self._sending:
            for peer in list(self._peers):
                with suppress(OSError):
                    peer.sendall(line.encode("utf-8") + b"\n")


def lost_seconds() -> float:
    """How long a machine may be out of reach. Raises RankError for what is no time."""
    text = os.environ.get(LOST_VARIABLE, str(LOST_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86400:
        raise RankError(f"{LOST_VARIABLE}={text}: give seconds, from 1 to 86400, or unset it")
    return seconds


def _keep_alive(peer: socket.socket, seconds: float) -> None:
    """The kernel gives the other machine up after `seconds` without an answer, whether or not something was sent."""
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    apart = max(1, round(seconds / 6))
    wanted = {"TCP_KEEPIDLE": 2 * apart, "TCP_KEEPINTVL": apart, "TCP_KEEPCNT": 4}
    for name, value in {**wanted, "TCP_USER_TIMEOUT": round(1000 * seconds)}.items():
        if hasattr(socket, name):  # the last is Linux's alone
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _leave(world: World, sentence: str) -> None:
    """Ends this process as an error does, with its sentence on the terminal and in the job's log."""
    print(f"{world.name}: error: stopped, because {sentence}", file=sys.stderr, flush=True)
    logging.getLogger("safealign.job").error("stopped, because %s", sentence)
    os._exit(2)


_OPEN: weakref.WeakSet[Lifeline] = weakref.WeakSet()


def _let_go() -> None:
    """A forked child (a data loader's worker) would hold its parent's connections open after the parent's death."""
    for line in list(_OPEN):
        for peer in line._all:
            peer.close()


os.register_at_fork(after_in_child=_let_go)
