"""How the lifeline's connections are made: all ranks call rank 0, at a port that it gives away in the store."""

from __future__ import annotations

import hmac
import ipaddress
import json
import secrets
import socket
import time
from contextlib import closing
from typing import Any

from safealign.errors import RankError
from safealign.ranks.callers import Callers
from safealign.ranks.lifeline import Lifeline
from safealign.ranks.world import World

_KEY = "lifeline"
# A caller's first bytes: the secret in hexadecimal digits, then its rank.
_SECRET, _RANK = 32, 10


def connect(world: World, store: Any, seconds: float) -> Lifeline:
    """The line between all ranks, which have met in `store`.

    Raises RankError when one has not come in `seconds`, or the store has gone meanwhile.
    """
    from torch.distributed import DistError

    try:
        peers = _answer(world, store, seconds) if world.rank == 0 else _call(world, store, seconds)
    except (DistError, RuntimeError) as error:
        raise RankError(
            f"{world.name} has met all the others at {world.address}:{world.port} and then heard no more of them: has "
            "rank 0 ended? Its own last lines say why"
        ) from error
    return Lifeline(world, peers)


def _call(world: World, store: Any, seconds: float) -> dict[socket.socket, str]:
    store.set(f"{_KEY}/{world.rank}", world.name)
    where = json.loads(store.get(_KEY))
    address = (world.address, where["port"])
    try:
        peer = socket.create_connection(address, timeout=seconds)
        peer.sendall(f"{where['secret']}{world.rank:{_RANK}}".encode())
    except OSError as error:
        raise RankError(
            f"{world.name} cannot connect to rank 0 at {address[0]}:{address[1]} ({error}): ranks talk to each other "
            "on any port, so let no firewall stand between the nodes"
        ) from error
    return {peer: where["name"]}


def _answer(world: World, store: Any, seconds: float) -> dict[socket.socket, str]:
    """Connections that know this job's secret, one for each other rank; strangers are sent away unread."""
    secret, deadline = secrets.token_hex(_SECRET // 2), time.monotonic() + seconds
    found: dict[int, socket.socket] = {}
    listener = _listening(world.address)
    with closing(Callers(listener, _SECRET + _RANK)) as callers:
        store.set(_KEY, json.dumps({"port": listener.getsockname()[1], "secret": secret, "name": world.name}))
        while len(found) < world.size - 1:
            left = deadline - time.monotonic()
            if left <= 0:
                missing = sorted(set(range(1, world.size)) - found.keys())
                raise RankError(
                    f"{world.name} waited {seconds:g} s for ranks {missing} to connect to it: ranks talk to each other "
                    "on any port, so let no firewall stand between the nodes"
                )
            for peer, said in callers.hear(left):
                if hmac.compare_digest(said[:_SECRET], secret.encode()):
                    found[int(said[_SECRET:])] = peer
                else:
                    peer.close()
    return {peer: store.get(f"{_KEY}/{rank}").decode() for rank, peer in found.items()}


def _listening(address: str) -> socket.socket:
    """On all interfaces, unless all ranks are on this machine and have been told so.

    A host's own name does not tell: it may mean a loopback address on that host, and another one elsewhere.
    """
    if _is_loopback(address):
        family, _, _, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
        return socket.create_server((str(place[0]), 0), family=family, backlog=1024)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=1024)


def _is_loopback(address: str) -> bool:
    try:
        return address == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
