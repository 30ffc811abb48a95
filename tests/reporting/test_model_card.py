"""The model card says what a user must know before anything else."""

from __future__ import annotations

from pathlib import Path

from safealign.evaluation.metrics.calibration import calibrate
from safealign.evaluation.metrics.rates import Rate
from safealign.reporting.model_card import CardFacts, model_card, write_model_card
from safealign.reporting.summary import Measure, Summary

FACTS = CardFacts(
    "export",
    "some/base",
    base_sha256="abc123",
    command="make train",
    data=[
        {"name": "pairs", "rows": 60, "licence": "MIT", "package": "pkg", "version": "1.0", "sha256": "ffee"}
    ],
)


def safety(units: int) -> dict[str, object]:
    found = calibrate({"query": range(units), "window": range(units)}, 0.05, 0.9)
    return {
        "head": {"layers": [0.5, 1.0], "pool": ["row"]},
        "placement": "append",
        "decoding": {"tau": 3},
        "thresholds": {name: part.logit for name, part in found.thresholds.items()} | {"prefix": None},
        "calibration": found.to_dict() | {"distribution": "everyday requests"},
    }


def test_card_says_what_a_plain_load_lacks() -> None:
    text = model_card(FACTS, safety(400))
    assert "without gate and decoding" in text and "was not evaluated" in text
    assert text.startswith("---\nlicense: apache-2.0\n") and "library_name: transformers" in text
    for fact in ("`abc123`", "pkg 1.0", "`ffee`", "make train", "everyday requests", "| prefix | off |"):
        assert fact in text


def test_card_admits_a_promise_that_cannot_be_kept() -> None:
    assert "too few for the promise" in model_card(FACTS, safety(20))
    assert "too few for the promise" not in model_card(FACTS, safety(400))
    assert "interventions are off" in model_card(FACTS, {})


def test_card_holds_the_results(tmp_path: Path) -> None:
    summary = Summary("t", "make table")
    summary.add_system("ours", "Ours")
    summary.put("ours", "attack_success", Measure("direct", "direct"), Rate(1, 80))
    summary.notes.append("judged by rules")
    path = write_model_card(tmp_path, FACTS, safety(400), summary)
    text = path.read_text()
    assert path.name == "README.md" and "1.2 % (1/80" in text and "- judged by rules" in text
    assert "library_name: peft" in model_card(CardFacts("a", "b", adapter=True), {})


def test_a_ranker_without_a_head_has_a_card_of_its_own() -> None:
    figures = {"n": 7, "accuracy": 0.9, "random": 0.5, "oracle": 1.0, "interval": [0.6, 0.98]}
    ranker = {"settings": {"tau": 0.2}, "training": {"parameters": 1234, "held_out": {"all": figures}}}
    alone = model_card(CardFacts("export", "some/base"), {"head": None, "ranker": ranker})
    assert "| all | 7 | 90.0% (60.0%–98.0%) | 50.0% | 100.0% |" in alone and "1,234 weights" in alone
    assert "safety token" not in alone and "## Thresholds" not in alone
    beside = model_card(CardFacts("export", "some/base"), {"head": {"layers": [0.5]}, "ranker": ranker})
    assert "safety token" in beside and "## Ranker" in beside and "## Thresholds" in beside
