"""The plan of a run on a cluster: its command, a GPU's memory, hours; every figure an estimate with its arithmetic."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from safealign.config.groups import PlanConfig
from safealign.config.roots import TrainConfig
from safealign.training.estimating.hours import Speed, step_seconds
from safealign.training.estimating.memory import Job, Part, loading, memory
from safealign.training.estimating.shapes import Shape, shape_of

GB = 1e9


@dataclass(frozen=True)
class Plan:
    """What `make_plan` found: parts in bytes and seconds, `steps` of the run."""

    command: str
    cluster: str
    shape: Shape
    job: Job
    parts: list[Part]
    loading: Part
    overhead: float
    capacity: float
    step: list[Part]
    steps: int
    per_node: int

    @property
    def needed(self) -> float:
        """Bytes of one GPU at the peak, the overhead included."""
        return sum(part.size for part in self.parts) + self.overhead

    @property
    def hours(self) -> float:
        """Of training alone: data, calibration and evaluation come on top."""
        return self.steps * sum(part.size for part in self.step) / 3600

    @property
    def problem(self) -> str:
        """Why it does not fit, in one sentence, or nothing."""
        if self.needed > self.capacity:
            return (
                f"does not fit: {self.needed / GB:.0f} GB of {self.capacity / GB:.0f} GB; split more (deepspeed=zero3, "
                "more GPUs), take a smaller trainer.batch_size, or set trainer.gradient_checkpointing=true"
            )
        if self.loading.size + self.overhead > self.capacity:
            return (
                f"does not fit: every process loads the whole model ({self.loading.size / GB:.0f} GB) onto its GPU "
                "before it is split, and rank 0 calibrates it whole; take GPUs that hold it"
            )
        return ""


def make_plan(config: TrainConfig, settings: PlanConfig, overrides: Sequence[str]) -> Plan:
    """Plans `config` on the cluster of `settings`; `overrides` are what the training command is given."""
    shape, job = shape_of(config.model.path, config.offline), job_of(config, settings)
    trainer = config.trainer
    n_examples = settings.examples or sum(getattr(config.data, name) for name in _COUNTS)
    batches = math.ceil(n_examples / (trainer.batch_size * job.gpus))
    per_epoch = max(1, batches // trainer.gradient_accumulation)
    steps = trainer.max_steps if trainer.max_steps > 0 else max(1, round(trainer.epochs * per_epoch))
    several = settings.nodes > 1
    speed = Speed(
        1e12 * (settings.tflops_bf16 if job.bf16 else settings.tflops_fp32),
        settings.utilisation,
        GB * (settings.network_gbs if several else settings.link_gbs),
    )
    return Plan(
        command_of(settings, overrides),
        f"{settings.nodes} × {settings.gpus} {settings.name}",
        shape,
        job,
        memory(shape, job),
        loading(shape, job),
        settings.overhead_gb * GB,
        settings.memory_gb * GB,
        step_seconds(shape, job, trainer.gradient_accumulation, speed),
        steps,
        settings.gpus,
    )


def job_of(config: TrainConfig, settings: PlanConfig) -> Job:
    """The job that a training config is on a cluster of GPUs with bf16."""
    engine = config.deepspeed.config or {}
    zero = engine.get("zero_optimization", {})
    rows = config.trainer.batch_size * (config.data.max_length + settings.safety_rows)
    return Job(
        gpus=settings.nodes * settings.gpus,
        stage=int(zero.get("stage", 0)),
        deepspeed=bool(engine),
        offload="offload_param" in zero,
        rank=config.adapter.r if config.adapter.name == "lora" else 0,
        rows=rows,
        scored=round(config.trainer.batch_size * config.data.max_length * settings.scored_share),
        bf16=config.trainer.precision != "fp32",
        checkpointing=config.trainer.gradient_checkpointing,
    )


def command_of(settings: PlanConfig, overrides: Sequence[str]) -> str:
    """The line that starts this run, as launch/ has it."""
    recipe = next((item.split("=", 1)[1] for item in overrides if item.startswith("+recipe=")), None)
    rest = [shlex.quote(item) for item in overrides if not item.startswith("+recipe=")]
    start = [f"RECIPE={recipe}"] if recipe else []
    if settings.nodes > 1:
        start += ["HOSTFILE=hostfile", "launch/multi_node.sh"]
    elif settings.gpus > 1:
        start += [f"GPUS={settings.gpus}", "launch/multi_gpu.sh"]
    else:
        start.append("launch/single_gpu.sh")
    return " ".join([*start, *rest])


def show(plan: Plan, console: Console) -> None:
    """Prints the plan; every figure is an estimate and says how it comes about."""
    shape, job = plan.shape, plan.job
    console.print("[bold]command[/]")
    console.print(f"  {plan.command}", markup=False, soft_wrap=True, highlight=False)
    kind = f"LoRA r={job.rank}" if job.rank else "all weights"
    how = f"ZeRO-{job.stage}" if job.deepspeed else ("DDP" if job.gpus > 1 else "one process")
    console.print(
        f"{shape.parameters / GB:.2f} G weights, {kind}, {how}, {plan.cluster}, {'bf16' if job.bf16 else 'fp32'}"
        f"{', gradient checkpointing' if job.checkpointing else ''}; {plan.steps:,} steps",
        highlight=False,
    )
    overhead = Part("driver, NCCL", plan.overhead, "assumed (plan.overhead_gb)")
    total = Part("together", plan.needed, f"of {plan.capacity / GB:.0f} GB")
    parts = [*plan.parts, overhead, total, plan.loading]
    console.print(_table("memory of one GPU, estimate", "GB", [(p, p.size / GB) for p in parts]))
    console.print(_table("one step, estimate", "s", [(p, p.size) for p in plan.step]))
    console.print(
        f"hours, estimate: {plan.hours:.2g} ({plan.steps:,} steps × {sum(p.size for p in plan.step):.2g} s; without "
        "data, calibration and evaluation)",
        highlight=False,
    )
    host = plan.loading.size * plan.per_node / GB
    console.print(f"host memory of one machine while loading, estimate: {host:.0f} GB at most", highlight=False)
    console.print(plan.problem or "fits, by this estimate", style="bold red" if plan.problem else "green")


def _table(title: str, unit: str, rows: Sequence[tuple[Part, float]]) -> Table:
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("")
    table.add_column(unit, justify="right")
    table.add_column("how")
    for part, value in rows:
        table.add_row(part.name, f"{value:.3g}", part.arithmetic)
    return table


_COUNTS = ("refusals", "benign_answers", "harmful_answers", "transitions", "prompts")
