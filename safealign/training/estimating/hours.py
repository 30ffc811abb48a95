"""Hours of a training run, by arithmetic: operations by the device's speed, bytes by the network's. An estimate."""

from __future__ import annotations

from dataclasses import dataclass

from safealign.training.estimating.memory import Job, Part, trained
from safealign.training.estimating.shapes import Shape


@dataclass(frozen=True)
class Speed:
    """Of one GPU: `flops` in the number format of the run, the share of them that training reaches, and bytes/s to
    the slowest neighbour.
    """

    flops: float
    utilisation: float
    bandwidth: float


def step_seconds(shape: Shape, job: Job, accumulation: int, speed: Speed) -> list[Part]:
    """Seconds of one optimiser step: computing, and communication as if nothing of it overlapped."""
    passes = (2 if job.rank else 4) + 2 + (2 if job.checkpointing else 0)
    weights = shape.parameters - (0 if shape.tied else shape.vocabulary * shape.hidden)  # a look-up costs nothing
    operations = passes * weights * job.rows * accumulation
    computing = operations / (speed.flops * speed.utilisation)
    how = f"{passes} × {weights:.3g} weights × {job.rows * accumulation:,} rows / ({speed.flops:.3g}/s × "
    computed = Part("computing", computing, f"{how}{speed.utilisation:g})")
    return [computed, _communication(shape, job, accumulation, speed)]


def _communication(shape: Shape, job: Job, accumulation: int, speed: Speed) -> Part:
    """Gradients are reduced once a step (2 × their bytes in a ring); ZeRO-3 gathers the weights for each pass."""
    if job.gpus == 1:
        return Part("communication", 0.0, "one GPU")
    size = 2 if job.bf16 and job.deepspeed else 4
    moved = 2.0 * trained(shape, job) * size
    how = f"2 × {trained(shape, job):.3g} gradients × {size} B"
    if job.stage == 3:
        gathers, weight = (3 if job.checkpointing else 2) * accumulation, 2 if job.bf16 else 4
        moved += gathers * shape.parameters * weight
        how += f" + {gathers} gathers × {shape.parameters:.3g} weights × {weight} B"
    return Part("communication", moved / speed.bandwidth, f"({how}) / {speed.bandwidth:.3g} B/s")
