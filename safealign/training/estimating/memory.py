"""Memory of one GPU in training, part by part, each with its arithmetic. An estimate: nothing is run.

States follow Rajbhandari et al. (ZeRO, arXiv 1910.02054); activations are the bytes that autograd keeps for a Llama
block of transformers, counted with torch's saved-tensor hooks (a test counts them again).
"""

from __future__ import annotations

from dataclasses import dataclass

from safealign.training.estimating.shapes import Shape

# Bytes kept for each row (token or safety row) and block: per hidden unit, per intermediate unit.
# By (adapter, bf16). In fp32: 8 and 4 numbers, 10 with trained norms. In bf16 the norms keep fp32 copies.
ACTIVATIONS = {(True, False): (32, 16), (True, True): (30, 8), (False, False): (40, 16), (False, True): (35, 8)}
# Log-probabilities of a scored row: logits, their softmax and its gradient, in fp32.
SCORED_BYTES = 12
# Largest weights that ZeRO-3 holds gathered at a time, in numbers (DeepSpeed's stage3_max_live_parameters).
LIVE = 10**9
# Numbers that ZeRO-2 and 3 reduce at a time (DeepSpeed's reduce_bucket_size).
BUCKET = 5 * 10**8


@dataclass(frozen=True)
class Job:
    """One way to train: `rank` of the adapter (0: all weights), ZeRO `stage` (0: DDP), rows of one pass on one GPU.

    `rows`: text and safety rows of a batch, padding included; `scored`: those whose next token is trained.
    """

    gpus: int
    stage: int
    deepspeed: bool
    offload: bool
    rank: int
    rows: int
    scored: int
    bf16: bool
    checkpointing: bool


@dataclass(frozen=True)
class Part:
    """A share of the whole: its bytes, and how they come about."""

    name: str
    size: float
    arithmetic: str


def memory(shape: Shape, job: Job) -> list[Part]:
    """What lies on one GPU at the peak of a training step, without what the driver and its libraries take."""
    return [*_states(shape, job), *_buffers(shape, job), *_activations(shape, job)]


def trained(shape: Shape, job: Job) -> int:
    """Numbers that are trained (the safety token and head, some thousands, left out)."""
    return shape.lora(job.rank) if job.rank else shape.parameters


def loading(shape: Shape, job: Job) -> Part:
    """The whole model, which every process loads before it is split."""
    size = 2 if job.bf16 and job.rank else 4
    return Part("whole model while loading", shape.parameters * size, f"{_n(shape.parameters)} × {size} B")


def _states(shape: Shape, job: Job) -> list[Part]:
    n_trained, split = trained(shape, job), job.gpus
    whole, weight = shape.parameters, 2 if job.bf16 and (job.rank or job.deepspeed) else 4
    parts = []
    if job.offload:
        parts.append(Part("weights", 0, "in the host's memory"))
    elif job.stage == 3:
        parts.append(Part("weights", whole * weight / split, f"{_n(whole)} × {weight} B / {split} GPUs"))
    else:
        parts.append(Part("weights", whole * weight, f"{_n(whole)} × {weight} B"))
    if job.rank:
        size = 2 if job.bf16 and job.deepspeed else 4
        share = split if job.stage == 3 else 1
        parts.append(Part("adapter", n_trained * size / share, _shared(n_trained, size, share)))
    size = 2 if job.bf16 and job.deepspeed else 4
    share = split if job.stage >= 2 else 1
    parts.append(Part("gradients", n_trained * size / share, _shared(n_trained, size, share)))
    if job.offload:
        return [*parts, Part("optimiser", 0, "in the host's memory")]
    size, share = 12 if job.deepspeed else 8, split if job.stage >= 1 else 1
    what = "two moments and an fp32 original" if job.deepspeed else "two moments"
    return [*parts, Part("optimiser", n_trained * size / share, f"{_shared(n_trained, size, share)} ({what})")]


def _buffers(shape: Shape, job: Job) -> list[Part]:
    n_trained, weight = trained(shape, job), 2 if job.bf16 else 4
    parts = []
    if job.stage == 3:
        live = min(LIVE, shape.parameters)
        parts.append(Part("gathered weights", live * weight, f"at most {_n(live)} × {weight} B at a time"))
    if job.stage >= 2:
        bucket = min(BUCKET, n_trained)
        parts.append(Part("reduction bucket", bucket * weight, f"at most {_n(bucket)} × {weight} B at a time"))
    if not job.deepspeed and job.gpus > 1:
        parts.append(Part("DDP's buckets", n_trained * 4, f"{_n(n_trained)} × 4 B"))
    if job.bf16 and not job.rank and not job.deepspeed:
        parts.append(Part("bf16 copies", shape.parameters * 2, f"{_n(shape.parameters)} × 2 B (autocast's)"))
    return parts


def _activations(shape: Shape, job: Job) -> list[Part]:
    per_hidden, per_middle = ACTIVATIONS[(bool(job.rank), job.bf16)]
    block = job.rows * (per_hidden * shape.hidden + per_middle * shape.intermediate)
    each = f"{job.rows:,} rows × ({per_hidden} B × {shape.hidden} + {per_middle} B × {shape.intermediate})"
    if job.checkpointing:
        size = 2 if job.bf16 and job.rank else 4
        inputs = job.rows * shape.layers * shape.hidden * size
        parts = [
            Part("block inputs", inputs, f"{job.rows:,} rows × {shape.layers} blocks × {size} B × {shape.hidden}"),
            Part("activations", block, f"one block: {each}"),
        ]
    else:
        parts = [Part("activations", shape.layers * block, f"{shape.layers} blocks × {each}")]
    scored = job.scored * shape.vocabulary * SCORED_BYTES
    return [*parts, Part("scores", scored, f"{job.scored:,} scored rows × {shape.vocabulary:,} × {SCORED_BYTES} B")]


def _shared(numbers: int, size: int, share: int) -> str:
    return f"{_n(numbers)} × {size} B" + (f" / {share} GPUs" if share > 1 else "")


def _n(count: float) -> str:
    """A count in a few digits: 8.03e9 as 8.03 G."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f}"
