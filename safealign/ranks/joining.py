"""How the processes of a job meet before anything else happens, and part when all is done."""

from __future__ import annotations

import json
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from safealign.errors import PreemptedError, RankError, SafealignError
from safealign.ranks.compiling import tools_on_path
from safealign.ranks.connecting import connect
from safealign.ranks.ranks import Ranks, enter, exit_current
from safealign.ranks.world import World, read_world

# How long ranks wait for each other at the start, in seconds.
JOIN_SECONDS, JOIN_VARIABLE = 300, "SAFEALIGN_JOIN_SECONDS"
# How much later than a broken collective the line may know whose end broke it, in seconds.
_TELLING = 5.0


@contextmanager
def joined(settings: Mapping[str, Any], *, alone_too: bool = False) -> Iterator[Ranks]:
    """While open, this process is one rank of its job: all have met, and all hold the same `settings` (nested).

    At the end every rank waits for rank 0; one that fails tells the others, and one that dies is missed by them.
    `alone_too`: a single process is made a world of one, which DeepSpeed needs. Raises RankError with a sentence when
    the ranks cannot meet or differ, or when another one has failed or gone.
    """
    world = read_world()
    if alone_too:
        tools_on_path()
    ranks = Ranks(world)
    if world.size > 1:
        store = _meet(world)
        ranks = Ranks(world, store, connect(world, store, _patience()))
    enter(ranks)
    added = {k: v for k, v in _environment(world, alone_too).items() if k not in os.environ}
    os.environ.update(added)
    try:
        ranks.agree("config", flat(settings))
        _join_group(world, ranks.store, alone_too)
        yield ranks
        ranks.finish()
    except PreemptedError:
        raise  # nothing has failed: every rank saves and ends
    except BaseException as error:
        # A collective that breaks is torch's RuntimeError, and says less than the line does a moment later.
        verdict = ranks.verdict(_TELLING if isinstance(error, RuntimeError) else 0.0)
        if verdict and isinstance(error, RuntimeError):
            raise RankError(f"stopped, because {verdict}") from error
        if not verdict:
            ranks.fail(str(error) if isinstance(error, SafealignError) else type(error).__name__)
        raise
    else:
        _part()
    finally:
        ranks.close()
        exit_current()
        for key in added:
            os.environ.pop(key, None)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted keys with their values as JSON."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = json.dumps(value, sort_keys=True, default=str)
    return found


def _environment(world: World, alone_too: bool) -> dict[str, str]:
    """What DeepSpeed and accelerate read; for a single process too where it is asked for."""
    import torch

    found: dict[str, str] = {}
    if alone_too and not torch.cuda.is_available():
        found["DS_ACCELERATOR"] = "cpu"
    if world.size == 1 and alone_too:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        found |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        found |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return found


def _patience() -> float:
    return float(os.environ.get(JOIN_VARIABLE, JOIN_SECONDS))


def _meet(world: World) -> Any:
    """The store that all ranks share. Raises RankError when they are not all there in time, or two are the same."""
    from torch.distributed import DistError, PrefixStore, rendezvous

    seconds = _patience()
    patience = timedelta(seconds=seconds)
    try:
        found, _, _ = next(rendezvous("env://", rank=world.rank, world_size=world.size, timeout=patience))
        store = PrefixStore("safealign", found)
        if store.add(f"here/{world.rank}", 1) > 1:
            raise RankError(
                f"two processes call themselves {world.name}: give every node its own number (NODE_RANK), and let no "
                f"older job hold {world.address}:{world.port}"
            )
        store.wait([f"here/{rank}" for rank in range(world.size)], patience)
    except (DistError, RuntimeError) as error:
        raise RankError(
            f"{world.name} has not met all the others at {world.address}:{world.port} within {seconds:g} s: is "
            f"every node started, with the same number of nodes and processes (WORLD_SIZE={world.size}), and may they "
            f"reach each other ({_first_line(error)})?"
        ) from error
    return store


def _join_group(world: World, store: Any, alone_too: bool) -> None:
    """torch's process group for the collectives of training, and this rank's own GPU."""
    if world.size == 1 and not alone_too:
        return
    import torch

    # DeepSpeed calls torch by older names; a line per step and rank would bury the log.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\..*")
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        count = torch.cuda.device_count()
        if 1 < count <= world.local_rank:
            raise RankError(
                f"{world.name} is process {world.local_rank} of its node, but the node shows {count} GPUs: start as "
                "many processes per node as it has GPUs"
            )
        torch.cuda.set_device(world.local_rank % count)
    backend = "nccl" if on_gpu else "gloo"
    try:
        if store is None:
            torch.distributed.init_process_group(backend, rank=0, world_size=1)
        else:
            own = torch.distributed.PrefixStore("group", store)
            torch.distributed.init_process_group(backend, store=own, rank=world.rank, world_size=world.size)
    except RuntimeError as error:
        hint = "set GLOO_SOCKET_IFNAME (or NCCL_SOCKET_IFNAME) to the network interface that the nodes share"
        raise RankError(f"{world.name} cannot talk to the others ({_first_line(error)}): {hint}") from error


def _part() -> None:
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
