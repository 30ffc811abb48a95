"""The card of an export, plain and honest JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from safealign.errors import CheckpointError
from safealign.modeling.checkpoint import SafetyCard, read_card, restore_safety, save_safety
from safealign.modeling.safety_token import HeadSettings

CARD = SafetyCard(HeadSettings((0.5,), ("row", "mean")), "prepend", True, "Sorry, no", "No.")


def test_a_card_survives_json() -> None:
    card = replace(CARD, thresholds={"query": -0.5, "prefix": None}, decoding={"schedule": "every"})
    assert SafetyCard.from_dict(json.loads(json.dumps(card.to_dict())), "safety.json") == card


def test_a_card_holds_no_nan(build, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        save_safety(tmp_path, build().parts, replace(CARD, thresholds={"query": float("nan")}))


def test_a_garbled_head_is_named() -> None:
    data = CARD.to_dict()
    data["head"]["layers"] = [2.0]
    with pytest.raises(CheckpointError, match=r"safety\.json.*fractions of depth"):
        SafetyCard.from_dict(data, "safety.json")


def test_a_torn_card_is_named(tmp_path: Path) -> None:
    (tmp_path / "safety.json").write_text('{"format_version": 1, "hea')
    with pytest.raises(CheckpointError, match=r"safety\.json cannot be read"):
        read_card(tmp_path)


def test_torn_tensors_are_named(build, tmp_path: Path) -> None:
    parts = build().parts
    save_safety(tmp_path, parts, CARD)
    path = tmp_path / "safety.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=r"safety\.safetensors is damaged"):
        restore_safety(tmp_path, parts)


def test_restoring_writes_the_trained_copy_under_an_adapter(build, tmp_path: Path) -> None:
    """PEFT keeps the original beside the trained copy: the trained one is saved and restored."""
    built = build(adapter=True)
    save_safety(tmp_path, built.parts, CARD)
    trained = built.parts.token.modules_to_save["default"].weight
    wanted = trained.detach().clone()
    assert not torch.equal(wanted, built.parts.token.original_module.weight)
    with torch.no_grad():
        trained.zero_()
    restore_safety(tmp_path, built.parts)
    assert torch.equal(built.parts.token.modules_to_save["default"].weight, wanted)
