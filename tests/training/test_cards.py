"""The model card of an export and its manifest."""

from __future__ import annotations

from pathlib import Path

from safealign.modeling.checkpoint import SafetyCard
from safealign.modeling.manifest import verify_manifest, write_manifest
from safealign.modeling.safety_token import HeadSettings
from safealign.reporting.summary import Summary
from safealign.training.cards import add_results, data_sets, write_card


def _card() -> SafetyCard:
    training = {"base": "smollm2_135m", "recipe": "llama_lora", "records": {"alpaca/benign": 3, "mine/malicious": 2}}
    return SafetyCard(HeadSettings(), "append", False, "Sorry, no", "No.", training=training)


def test_data_sets_add_up_over_labels_and_carry_what_the_registry_knows() -> None:
    rows = data_sets({"alpaca/benign": 3, "alpaca/None": 2, "mine/malicious": 4, "sampled_everyday/benign": 1})
    assert [(row["name"], row["rows"]) for row in rows] == [("alpaca", 5), ("mine", 4), ("sampled_everyday", 1)]
    assert rows[0]["package"] and len(rows[0]["sha256"]) == 64
    assert "package" not in rows[1] and rows[2]["licence"]


def test_results_are_added_and_the_manifest_follows(tmp_path: Path) -> None:
    for name in ("model.safetensors", "safety.safetensors", "safety.json"):
        (tmp_path / name).write_bytes(b"content")
    write_card(tmp_path, _card())
    write_manifest(tmp_path)
    assert "was not evaluated" in (tmp_path / "README.md").read_text(encoding="utf-8")
    summary = Summary("a table")
    summary.notes.append("a remark that belongs with the figures")
    add_results(tmp_path, _card(), summary)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "a remark that belongs with the figures" in text and "+recipe=llama_lora" in text
    verify_manifest(tmp_path)
