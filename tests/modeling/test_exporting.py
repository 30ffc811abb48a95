"""Exported and reloaded equals live; other tools see a plain language model; damage is noticed and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from safealign.errors import CheckpointError
from safealign.modeling.exporting import export_model
from safealign.modeling.loading import load_export
from safealign.modeling.manifest import write_manifest

KINDS = [
    pytest.param(False, True, id="whole model"),
    pytest.param(True, True, id="adapter merged"),
    pytest.param(True, False, id="adapter alone"),
]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def _export(built: Any, folder: Path, merge: bool = True, **more: Any) -> Path:
    return export_model(
        folder, built.lm, built.tokenizer, built.parts, built.card, merge=merge, base_name=built.base, **more
    )


@pytest.fixture
def folder(build: Any, tmp_path: Path) -> Path:
    """A whole export, to be damaged."""
    return _export(build(), tmp_path / "export")


@pytest.mark.parametrize(("adapter", "merge"), KINDS)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_reloaded_equals_live(build, probe, tmp_path: Path, family: str, adapter: bool, merge: bool) -> None:
    built = build(family, adapter)
    live = built.outputs()
    export = load_export(_export(built, tmp_path / "export", merge))
    for found, expected in zip(probe.exported(export), live, strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)
    assert export.card == built.card
    assert export.parts.token.weight.dtype is torch.float32


@pytest.mark.parametrize(("adapter", "merge"), KINDS)
def test_the_live_model_is_left_as_it_was(build, tmp_path: Path, adapter: bool, merge: bool) -> None:
    built = build(adapter=adapter)
    before, names = built.outputs(), list(built.lm.state_dict())
    _export(built, tmp_path / "export", merge)
    for found, expected in zip(built.outputs(), before, strict=True):
        assert torch.equal(found, expected)
    assert list(built.lm.state_dict()) == names
    assert not built.lm.training


@pytest.mark.parametrize("adapter", [False, True])
def test_a_merged_export_is_a_plain_model_to_other_tools(build, probe, tmp_path: Path, adapter: bool) -> None:
    built = build(adapter=adapter)
    folder = _export(built, tmp_path / "export")
    plain, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(probe.plain(plain), probe.plain(built.lm), **CLOSE)
    assert AutoTokenizer.from_pretrained(folder).chat_template == built.tokenizer.chat_template
    names = _tensor_names(folder / "model.safetensors")
    assert names and not any("safety" in name or "lora" in name or "base_layer" in name for name in names)
    assert not list(folder.glob("adapter_*"))


def test_an_adapter_export_is_a_plain_adapter_to_other_tools(build, probe, tmp_path: Path) -> None:
    built = build(adapter=True)
    folder = _export(built, tmp_path / "export", merge=False)
    bare = AutoModelForCausalLM.from_pretrained(built.base)
    loaded = PeftModel.from_pretrained(bare, folder).eval()
    torch.testing.assert_close(probe.plain(loaded), probe.plain(built.lm), **CLOSE)
    names = _tensor_names(folder / "adapter_model.safetensors")
    assert names and not any("safety" in name for name in names)
    assert not (folder / "model.safetensors").exists()
    assert json.loads((folder / "adapter_config.json").read_text())["modules_to_save"] is None


def _tensor_names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def test_an_older_export_is_replaced_whole(build, tmp_path: Path) -> None:
    folder = _export(build(), tmp_path / "export", extras=lambda at: (at / "old.txt").write_text("old"))
    assert (folder / "old.txt").exists()
    _export(build(), folder)
    assert not (folder / "old.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_a_failed_export_leaves_the_older_one_alone(build, tmp_path: Path) -> None:
    folder = _export(build(), tmp_path / "export")
    broken = build()
    with torch.no_grad():
        broken.parts.token.weight[0] = torch.nan
    with pytest.raises(CheckpointError):
        _export(broken, folder)
    load_export(folder)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["token", "head"])
def test_a_diverged_tensor_is_not_saved(build, tmp_path: Path, where: str, bad: float) -> None:
    built = build()
    tensor = built.parts.token.weight if where == "token" else built.parts.head.linear.weight
    with torch.no_grad():
        tensor.view(-1)[1] = bad
    with pytest.raises(CheckpointError, match=where):
        _export(built, tmp_path / "export")
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("adapter", [False, True])
def test_an_empty_tensor_is_not_saved(build, tmp_path: Path, adapter: bool) -> None:
    """A sharded tensor that was not gathered is empty, and would overwrite a good one in silence."""
    built = build(adapter=adapter)
    head = built.parts.head
    head = head.modules_to_save["default"] if adapter else head
    head.linear.weight = torch.nn.Parameter(torch.empty(0))
    with pytest.raises(CheckpointError, match="head.linear.weight: it is empty"):
        _export(built, tmp_path / "export")


@pytest.mark.parametrize("merge", [True, False])
def test_an_empty_tensor_of_the_language_model_is_not_saved(build, tmp_path: Path, merge: bool) -> None:
    built = build(adapter=not merge)
    layer = built.parts.layers[0].self_attn.q_proj
    if merge:
        layer.weight = torch.nn.Parameter(torch.empty(0))
    else:
        layer.lora_A["default"].weight = torch.nn.Parameter(torch.empty(0))
    with pytest.raises(CheckpointError, match="empty"):
        _export(built, tmp_path / "export", merge)


@pytest.mark.parametrize(
    "name", ["safety.json", "safety.safetensors", "model.safetensors", "config.json", "manifest.json"]
)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_export(folder)


@pytest.mark.parametrize("name", ["safety.json", "safety.safetensors", "model.safetensors", "tokenizer.json"])
def test_a_flipped_byte_is_noticed_and_named(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_export(folder)


def test_a_manifest_that_lists_nothing_proves_nothing(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        load_export(folder)


@pytest.mark.parametrize("name", ["safety.json", "manifest.json"])
def test_a_json_file_of_another_shape_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text("[]")
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_export(folder)


@pytest.mark.parametrize("version", [0, 1, None, "2"])
def test_another_format_version_is_refused(folder: Path, version: Any) -> None:
    _edit(folder, format_version=version)
    with pytest.raises(CheckpointError, match=r"safety\.json has format version"):
        load_export(folder)


@pytest.mark.parametrize("key", ["head", "placement", "trigger", "thresholds", "decoding"])
def test_a_card_without_a_key_is_refused_with_its_name(folder: Path, key: str) -> None:
    data = json.loads((folder / "safety.json").read_text())
    del data[key]
    (folder / "safety.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=rf"safety\.json.*{key}"):
        load_export(folder)


@pytest.mark.parametrize("name", ["head.linear.weight", "token.weight", "head.mean", "head.scale"])
def test_parts_that_are_not_the_trained_ones_are_noticed(folder: Path, name: str) -> None:
    """Same shapes, other values, a manifest that fits: only the recorded probe can tell."""
    tensors = load_file(folder / "safety.safetensors")
    tensors[name] = torch.full_like(tensors[name], 0.5)
    save_file(tensors, folder / "safety.safetensors")
    write_manifest(folder)
    with pytest.raises(CheckpointError, match="not restored"):
        load_export(folder)


@pytest.mark.parametrize("change", ["missing", "empty", "half", "other width"])
def test_tensors_that_do_not_fit_are_refused(folder: Path, change: str) -> None:
    tensors = load_file(folder / "safety.safetensors")
    weight = tensors.pop("head.linear.weight")
    made = {"empty": weight[:, :0], "half": weight.half(), "other width": weight[:, :8]}
    if change != "missing":
        tensors["head.linear.weight"] = made[change].contiguous()
    save_file(tensors, folder / "safety.safetensors")
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    _edit(folder, tensors=shapes)
    write_manifest(folder)
    with pytest.raises(CheckpointError, match=r"safety\.safetensors.*head\.linear\.weight"):
        load_export(folder)


def _edit(folder: Path, **changes: Any) -> None:
    data = json.loads((folder / "safety.json").read_text()) | changes
    (folder / "safety.json").write_text(json.dumps(data))


def test_an_adapter_on_another_base_is_refused(build, bases, tmp_path: Path) -> None:
    built = build(adapter=True)
    folder = _export(built, tmp_path / "export", merge=False)
    base = json.loads((folder / "base.json").read_text())
    (folder / "base.json").write_text(json.dumps(base | {"name": str(bases["other"])}))
    write_manifest(folder)
    with pytest.raises(CheckpointError, match="other weights than"):
        load_export(folder)


def test_a_folder_that_is_no_export_says_so(tmp_path: Path, bases) -> None:
    with pytest.raises(CheckpointError, match="no safealign export"):
        load_export(bases["llama"])
    with pytest.raises(CheckpointError, match="no export at"):
        load_export(tmp_path / "nowhere")
