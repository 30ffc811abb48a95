"""How the lifeline's connections are made: all ranks call rank 0, at a port that it gives away in the store."""

from __future__ import annotations

import json
import secrets
import socket
import time
from contextlib import closing
from typing import Any

from safealign.errors import RankError
from safealign.ranks.lifeline import Lifeline
from safealign.ranks.world import World

_KEY = "lifeline"


def connect(world: World, store: Any, seconds: float) -> Lifeline:
    """The line between all ranks, which have met in `store`. Raises RankError when one has not come in `seconds`."""
    if world.rank == 0:
        return Lifeline(world, _answer(world, store, seconds))
    where = json.loads(store.get(_KEY))
    address = (world.address, where["port"])
    try:
        peer = socket.create_connection(address, timeout=seconds)
        peer.sendall(json.dumps({"secret": where["secret"], "rank": world.rank, "name": world.name}).encode() + b"\n")
    except OSError as error:
        raise RankError(
            f"{world.name} cannot connect to rank 0 at {address[0]}:{address[1]} ({error}): ranks talk to each other "
            "on any port, so let no firewall stand between the nodes"
        ) from error
    return Lifeline(world, {peer: where["name"]})


def _answer(world: World, store: Any, seconds: float) -> dict[socket.socket, str]:
    """Connections that call themselves ranks of this job, one for each other rank; strangers are sent away."""
    secret, deadline = secrets.token_hex(16), time.monotonic() + seconds
    found: dict[int, tuple[socket.socket, str]] = {}
    with closing(_listening()) as listener:
        store.set(_KEY, json.dumps({"port": listener.getsockname()[1], "secret": secret, "name": world.name}))
        while len(found) < world.size - 1:
            listener.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                peer, _ = listener.accept()
            except TimeoutError:
                missing = sorted(set(range(1, world.size)) - found.keys())
                raise RankError(
                    f"{world.name} waited {seconds:g} s for ranks {missing} to connect to it: ranks talk to each other "
                    "on any port, so let no firewall stand between the nodes"
                ) from None
            hello = _hello(peer)
            if hello.get("secret") == secret:
                found[int(hello["rank"])] = (peer, str(hello["name"]))
            else:
                peer.close()
    return dict(found.values())


def _listening() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=1024)


def _hello(peer: socket.socket) -> dict[str, Any]:
    """What a caller says of itself, in one line; nothing if it does not in five seconds."""
    text, deadline = b"", time.monotonic() + 5.0
    try:
        while not text.endswith(b"\n") and len(text) < 4096:
            peer.settimeout(max(0.001, deadline - time.monotonic()))
            more = peer.recv(1)
            if not more:
                return {}
            text += more
        found = json.loads(text)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
