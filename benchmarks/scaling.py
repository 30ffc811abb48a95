"""The table of docs/scaling.md: what `safealign.launch` estimates for 8B and 70B, from one GPU to 64 machines.

`python -m benchmarks.scaling` prints it; nothing is measured.
"""

from __future__ import annotations

from safealign.config import compose
from safealign.training.estimating.plan import GB, Plan, make_plan

COMMON = ("trainer.gradient_checkpointing=true", "data.max_length=2048", "trainer.batch_size=4")
EXAMPLES = "plan.examples=1000000"
MODELS = {"8B": "model=llama3_8b", "70B": "model=meta-llama/Meta-Llama-3-70B-Instruct"}
# Model, what is trained, DeepSpeed setting, machines, GPUs in each.
ROWS = [
    ("8B", "lora", "none", 1, 1),
    ("8B", "lora", "none", 1, 8),
    ("8B", "lora", "zero3", 1, 8),
    ("8B", "none", "zero2", 1, 8),
    ("8B", "none", "zero3", 1, 8),
    ("8B", "none", "zero3_offload", 1, 8),
    ("8B", "none", "zero3", 8, 8),
    ("8B", "none", "zero3", 64, 8),
    ("70B", "lora", "zero3", 1, 8),
    ("70B", "lora", "zero3", 8, 8),
    ("70B", "lora", "zero3", 64, 8),
    ("70B", "none", "zero3", 8, 8),
    ("70B", "none", "zero3", 64, 8),
]


def plan(model: str, adapter: str, deepspeed: str, nodes: int, gpus: int) -> Plan:
    """The plan of one row."""
    overrides = [MODELS[model], f"adapter={adapter}", f"deepspeed={deepspeed}", *COMMON]
    cluster = compose(["plan=h100", f"plan.nodes={nodes}", f"plan.gpus={gpus}", EXAMPLES], "launch").plan
    return make_plan(compose(overrides), cluster, overrides)


def table() -> str:
    """The rows as Markdown."""
    lines = [
        "| model | trained | deepspeed | GPUs | GB in a step | GB while loading | computing | communication | hours "
        "| today |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for model, adapter, deepspeed, nodes, gpus in ROWS:
        found = plan(model, adapter, deepspeed, nodes, gpus)
        trained = "LoRA" if adapter == "lora" else "all"
        seconds = " | ".join(f"{part.size:.2g} s" for part in found.step)
        today = "does not fit" if found.problem else "fits"
        lines.append(
            f"| {model} | {trained} | {deepspeed} | {nodes * gpus} | {found.needed / GB:.0f} | "
            f"{found.loading.size / GB:.0f} | {seconds} | {found.hours:.2g} | {today} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
