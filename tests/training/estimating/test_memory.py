"""The memory estimate against what torch really keeps, and what a process really takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from safealign.training.estimating.hours import Speed, step_seconds
from safealign.training.estimating.memory import ACTIVATIONS, Job, loading, memory, trained
from safealign.training.estimating.shapes import PUBLISHED, Shape, shape_from

SHAPE = Shape(4, 512, 1024, 8, 2, 64, True)
JOB = Job(1, 0, False, False, 0, 128, 1, False, False)
KINDS = [(True, False), (True, True), (False, False), (False, True)]


def model_of(shape: Shape, rank: int, bf16: bool) -> Any:
    """A random Llama of this shape, as training would have it."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied,
        attn_implementation="sdpa",
    )
    model: Any = LlamaForCausalLM(config)
    if rank:
        model = model.to(torch.bfloat16) if bf16 else model
        model = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))
    return model.train()


def kept_bytes(shape: Shape, rank: int, bf16: bool) -> int:
    """Bytes that autograd keeps of two sequences of 48 rows under a float mask, without weights and their copies."""
    model = model_of(shape, rank, bf16)
    decoder = model.get_base_model().get_decoder() if rank else model.get_decoder()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes = {p.numel() for p in model.parameters() if p.dim() == 2}
    storages: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and not (bf16 and tensor.dim() == 2 and tensor.numel() in sizes):
            storages[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    embeds = model.get_input_embeddings()(torch.zeros(2, 48, dtype=torch.long)).detach().requires_grad_(True)
    mask = torch.zeros(2, 1, 48, 48, dtype=embeds.dtype)
    noted = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), noted:
        decoder(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
    return sum(size for size, _ in storages.values())


@pytest.mark.parametrize(("lora", "bf16"), KINDS)
def test_activations_are_what_autograd_keeps(lora: bool, bf16: bool) -> None:
    rank = 4 if lora else 0
    deep, shallow = kept_bytes(replace(SHAPE, layers=4), rank, bf16), kept_bytes(replace(SHAPE, layers=2), rank, bf16)
    per_hidden, per_middle = ACTIVATIONS[(lora, bf16)]
    expected = 2 * 96 * (per_hidden * SHAPE.hidden + per_middle * SHAPE.intermediate)
    assert deep - shallow == pytest.approx(expected, rel=0.08)


def test_weights_are_counted_exactly() -> None:
    for shape in (SHAPE, replace(SHAPE, tied=False, kv_heads=8)):
        model = model_of(shape, 0, False)
        assert shape_from(model.config) == shape
        assert shape.parameters == sum(p.numel() for p in model.parameters())
        adapted = model_of(shape, 4, False)
        assert shape.lora(4) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


@pytest.mark.parametrize(("name", "billions"), [("8B", 8.03), ("70B", 70.55)])
def test_published_shapes_have_the_published_number_of_weights(name: str, billions: float) -> None:
    assert PUBLISHED[f"meta-llama/Meta-Llama-3-{name}-Instruct"].parameters / 1e9 == pytest.approx(billions, abs=0.01)


def size(job: Job, shape: Shape = SHAPE) -> float:
    """Bytes of a job."""
    return sum(part.size for part in memory(shape, job))


def test_each_stage_needs_less_and_the_states_add_up() -> None:
    shape, job = replace(SHAPE, layers=400), Job(8, 0, True, False, 0, 8, 1, False, False)
    sizes = [size(replace(job, stage=stage), shape) for stage in (0, 1)]
    assert sizes[0] - sizes[1] == pytest.approx(trained(shape, job) * 12 * 7 / 8)
    states = ("weights", "gradients", "optimiser")
    split = [part for part in memory(shape, replace(job, stage=3)) if part.name in states]
    assert sum(part.size for part in split) == pytest.approx(shape.parameters * (4 + 4 + 12) / 8)
    assert loading(shape, job).size == shape.parameters * 4
    held = {part.name: part.size for part in memory(shape, replace(job, stage=3, offload=True))}
    assert held["weights"] == held["optimiser"] == 0


def test_checkpointing_trades_memory_for_time_and_safety_rows_send_nothing() -> None:
    job, speed = replace(JOB, gpus=8, stage=2, deepspeed=True, rows=4096), Speed(1e12, 0.5, 1e10)
    lean = replace(job, checkpointing=True)
    assert size(lean) < size(job)
    slower, faster = step_seconds(SHAPE, lean, 1, speed)[0], step_seconds(SHAPE, job, 1, speed)[0]
    assert slower.size == pytest.approx(4 / 3 * faster.size)
    more = replace(job, rows=job.rows + 512)
    assert step_seconds(SHAPE, more, 1, speed)[1] == step_seconds(SHAPE, job, 1, speed)[1]


_STEP = """
import json, sys, torch
sys.path.insert(0, {here!r})
from test_memory import PEAK, model_of
from benchmarks.peak_memory import peak_memory, reset_peak
rank = int(sys.argv[1])
def step(model, optimiser, rows, length):
    ids = torch.randint(0, PEAK.vocabulary, (rows, length))
    mask = torch.zeros(rows, 1, length, length)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids.flatten()).backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=False)
from dataclasses import replace
small = model_of(replace(PEAK, layers=1, hidden=64, intermediate=64), rank, False)
step(small, torch.optim.AdamW([p for p in small.parameters() if p.requires_grad], foreach=False), 1, 8)
del small
reset_peak()
before = peak_memory()
model = model_of(PEAK, rank, False)
optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=False)
for _ in range(2):
    step(model, optimiser, 8, 256)
print(json.dumps(peak_memory() - before))
"""
PEAK = Shape(8, 512, 1536, 8, 4, 2000, True)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is measured on Linux")
@pytest.mark.parametrize("rank", [16, 0])
def test_the_whole_estimate_is_within_a_quarter_of_a_process_that_trains(root: Path, rank: int) -> None:
    code = _STEP.format(here=str(Path(__file__).parent))
    # Freed blocks go back at once, so that what is measured is what is held.
    env = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(rank)], cwd=root, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected = size(Job(1, 0, False, False, rank, 8 * 256, 8 * 256, False, False), PEAK)
    assert json.loads(done.stdout) == pytest.approx(expected, rel=0.25)
