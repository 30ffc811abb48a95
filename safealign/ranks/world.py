"""What a launcher says in the environment: this process's rank, how many there are, where rank 0 listens.

torchrun and deepspeed set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; srun has names of its own.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from safealign.errors import RankError

DEFAULT_PORT = "29500"
# Set by srun for each task of a step, but not for the batch script around it, which is a process of its own.
_SLURM = {"WORLD_SIZE": "SLURM_STEP_NUM_TASKS", "RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID"}


@dataclass(frozen=True)
class World:
    """The place of this process among `size` of one job; `address:port` is where rank 0 listens."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    address: str = "127.0.0.1"
    port: int = int(DEFAULT_PORT)

    @property
    def name(self) -> str:
        """`rank 3 of 8 (host)`: how messages call this process."""
        return f"rank {self.rank} of {self.size} ({socket.gethostname()})"


def world_size(environment: Mapping[str, str] | None = None) -> int:
    """How many processes run this job; 1 where no launcher has said, or not in a number."""
    found = (os.environ if environment is None else environment).get("WORLD_SIZE", "")
    return max(1, int(found)) if found.isdigit() else 1


def is_main_process() -> bool:
    """Is this rank 0, or the only process?"""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def adopt_slurm(environment: MutableMapping[str, str] | None = None) -> None:
    """Gives srun's numbers the names that torch and DeepSpeed know, where no other launcher came between."""
    env = os.environ if environment is None else environment
    if "RANK" in env or "WORLD_SIZE" in env or env.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return
    missing = [name for name in _SLURM.values() if name not in env]
    if missing:
        raise RankError(f"srun has set SLURM_STEP_NUM_TASKS but not {missing[0]}: start the job as launch/slurm.sbatch")
    for name, slurm in _SLURM.items():
        env[name] = env[slurm]


def read_world(environment: Mapping[str, str] | None = None) -> World:
    """The world that the environment describes; a single process where no launcher has said anything.

    Raises RankError with one sentence for numbers that are missing, no numbers, or contradict each other.
    """
    env = os.environ if environment is None else environment
    size = _number(env, "WORLD_SIZE", 1)
    if size < 1:
        raise RankError(f"WORLD_SIZE={size}: a job has at least one process")
    if size == 1:
        return World()
    for name, why in _NEEDED.items():
        if not env.get(name):
            raise RankError(f"WORLD_SIZE={size}, but {name} is not set: {why}")
    rank, local = _number(env, "RANK"), _number(env, "LOCAL_RANK", _number(env, "RANK"))
    if not 0 <= rank < size:
        raise RankError(
            f"RANK={rank} does not fit WORLD_SIZE={size} (ranks go from 0 to {size - 1}): do the number of nodes, the "
            "processes per node and this node's own number agree on every node?"
        )
    if not 0 <= local < size:
        raise RankError(f"LOCAL_RANK={local} does not fit WORLD_SIZE={size}: start the job with one of launch/")
    port = _number({"MASTER_PORT": DEFAULT_PORT, **env}, "MASTER_PORT")
    if not 0 < port < 65536:
        raise RankError(f"MASTER_PORT={port}: a port lies between 1 and 65535")
    return World(rank, local, size, _resolved(env["MASTER_ADDR"]), port)


_NEEDED = {
    "RANK": "start every process with torchrun, deepspeed or srun, which number them (launch/ has a script for each)",
    "MASTER_ADDR": "export the host name of the first node before srun, as launch/slurm.sbatch does",
}


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = env.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(str(text))
    except ValueError:
        raise RankError(f"{name}={text} is no whole number: launchers set it; unset it or correct it") from None


def _resolved(address: str) -> str:
    try:
        socket.getaddrinfo(address, None)
    except OSError as error:
        raise RankError(
            f"MASTER_ADDR={address}: this host ({socket.gethostname()}) cannot resolve the name ({error.strerror}); "
            "give the first node's IP address, or correct the hostfile"
        ) from error
    return address
