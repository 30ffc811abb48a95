"""Several processes that run one job: who they are, how they meet, agree, wait for each other and write one log."""

from __future__ import annotations

from safealign.ranks.joining import joined
from safealign.ranks.log import JobConsole, job_log
from safealign.ranks.ranks import Ranks, current
from safealign.ranks.world import World, adopt_slurm, is_main_process, read_world, world_size

__all__ = [
    "JobConsole",
    "Ranks",
    "World",
    "adopt_slurm",
    "current",
    "is_main_process",
    "job_log",
    "joined",
    "read_world",
    "world_size",
]
