"""Every adapter: one step, a checkpoint, the export merged and as an adapter, the same verdicts and answers again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import SmallRun, answers_of, one_step

from safealign.config import compose
from safealign.errors import ConfigError
from safealign.model import load
from safealign.modeling.checkpoint import safety_tensors
from safealign.modeling.exporting import export_model, merged
from safealign.modeling.loading import TINY_NAME, load_base
from safealign.modeling.precision import weights_as
from safealign.modeling.quantization import Quantization, merged_twin, quantization_of
from safealign.training.checks import config_problems
from safealign.training.pipeline import load_model, quantization
from safealign.training.reexport import reexport

BASE = f"{TINY_NAME}:llama:0"
PLAIN = ("lora", "dora", "rslora", "none")
IDS = torch.arange(1, 40)[None]


def trained(adapter: str, folder: Path, dtype: torch.dtype = torch.float32, **how: Any) -> SmallRun:
    model, tokenizer = load_base(BASE, dtype=dtype, **how)
    return one_step(model, tokenizer, folder, [f"adapter={adapter}"])


def checkpoint(run: SmallRun, folder: Path) -> None:
    """The checkpoint of a run in `folder`, as the training command writes it."""
    what = (run.model, run.renderer.tokenizer, run.parts, run.card)
    (folder / "checkpoints").mkdir(exist_ok=True)
    export_model(folder / "checkpoints" / "step-1", *what, merge=False, base_name=BASE)


def logits(lm: Any) -> torch.Tensor:
    with torch.no_grad():
        return lm(input_ids=IDS.to(lm.device), use_cache=False).logits.float().cpu()


@pytest.mark.parametrize("adapter", PLAIN)
def test_saved_merged_and_restored(adapter: str, tmp_path: Path) -> None:
    run = trained(adapter, tmp_path)
    assert all(run.moved(part) for part in ("safety_token", "safety_head"))
    assert run.moved("lora_") == (adapter != "none")
    assert run.moved("q_proj.weight") == (adapter == "none")
    wanted, tensors = answers_of(run.live()), safety_tensors(run.parts)
    checkpoint(run, tmp_path)
    loads = {"checkpoint": load(tmp_path / "checkpoints" / "step-1")}
    for merge in ("true", "false"):
        loads[merge] = load(reexport(compose([f"run={tmp_path}", f"merge={merge}"], "export")))
    for again in loads.values():
        p, answers = answers_of(again)
        assert p == pytest.approx(wanted[0], abs=1e-4)
        assert answers == wanted[1]
        assert again.parts is not None
        restored = safety_tensors(again.parts)
        assert all(torch.equal(restored[name], tensors[name]) for name in tensors)
    assert hasattr(loads["false"].hf, "peft_config") == (adapter != "none")
    assert not hasattr(loads["true"].hf, "peft_config")


@pytest.mark.parametrize("adapter", PLAIN)
def test_token_and_head_stay_fp32(adapter: str, tmp_path: Path) -> None:
    """Trained on bf16 weights, saved, loaded into a bf16 model, and while weights are served in bf16."""
    run = trained(adapter, tmp_path, torch.bfloat16)

    def kinds(model: Any) -> set[torch.dtype]:
        named = [*model.named_parameters(), *model.named_buffers()]
        return {tensor.dtype for name, tensor in named if "safety_" in name and tensor.is_floating_point()}

    assert kinds(run.model) == {torch.float32}
    with weights_as(run.model, torch.bfloat16):
        assert kinds(run.model) == {torch.float32}
    what = (run.model, run.renderer.tokenizer, run.parts, run.card)
    for merge in (True, False):
        folder = export_model(tmp_path / f"export-{merge}", *what, merge=merge, base_name=BASE)
        assert kinds(load(folder, dtype="bf16").hf) == {torch.float32}


@pytest.mark.parametrize("adapter", ["lora", "dora", "rslora"])
def test_the_adapter_changes_what_the_config_says(adapter: str, tmp_path: Path) -> None:
    run = trained(adapter, tmp_path)
    made = run.model.peft_config["default"]
    assert (made.use_dora, made.use_rslora) == (adapter == "dora", adapter == "rslora")
    layer = run.parts.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == pytest.approx(32 / (made.r**0.5 if adapter == "rslora" else made.r))
    assert any("lora_magnitude_vector" in name for name in run.before) == (adapter == "dora")


@pytest.mark.parametrize("adapter", ["lora", "dora", "rslora"])
def test_a_plain_twin_computes_what_model_and_adapter_compute(adapter: str, tmp_path: Path) -> None:
    """How 4-bit weights are merged; shown on weights that are plain already."""
    run = trained(adapter, tmp_path)
    twin = merged_twin(run.model, torch.float32)
    torch.testing.assert_close(logits(twin), logits(run.model), atol=1e-4, rtol=1e-4)
    assert not any("safety_" in name or "lora_" in name for name in twin.state_dict())


def test_quantised_weights_are_refused_where_they_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(["model=tiny_random", "adapter=qlora"])
    assert quantization(config) == Quantization("nf4", True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"bitsandbytes, which is not installed.*adapter=lora"):
        load_model(config)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="CUDA GPU.*adapter=lora"):
        load_model(config)


def test_an_adapter_over_quantised_weights_is_not_loaded_onto_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained("lora", tmp_path)
    monkeypatch.setattr("safealign.modeling.exporting.quantization_of", lambda model: Quantization("nf4", True))
    checkpoint(run, tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="bitsandbytes"):
        load(tmp_path / "checkpoints" / "step-1")


def test_quantised_weights_need_an_adapter() -> None:
    found = config_problems(compose(["adapter=none", "adapter.quantization=nf4", "suite=none"]))
    assert any("adapter.quantization" in problem for problem in found)


@pytest.mark.gpu
def test_qlora_goes_the_whole_way(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    run = trained("qlora", tmp_path, torch.bfloat16, quantization=Quantization("nf4", True))
    assert quantization_of(run.model) == Quantization("nf4", True)
    assert run.parts.token.weight.dtype is torch.float32
    before = logits(run.model)
    with merged(run.model):
        assert torch.equal(logits(run.model), before)
    wanted, _ = answers_of(run.live())
    for merge in (True, False):
        p, _ = answers_of(run.reloaded(tmp_path / f"export-{merge}", merge, BASE))
        assert p == pytest.approx(wanted, abs=0.05)  # merged: the adapter in bf16, once more
