"""The summary: its JSON contract, the way back, Markdown, and atomic writing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from safealign.errors import DataError
from safealign.evaluation.metrics.rates import Estimate, Rate
from safealign.reporting.cells import Cell, number_text
from safealign.reporting.summary import AREAS, Grid, Measure, Summary

DIRECT = Measure("direct", "direct requests", goal="≤ 5 %")
LOSS = Measure("lm_loss", "LM loss", style="number")


def summary() -> Summary:
    made = Summary("A title", "make table")
    made.add_system("undefended", "Undefended")
    made.add_system("ours", "Ours")
    made.put("undefended", "attack_success", DIRECT, Rate(79, 80))
    made.put("ours", "attack_success", "direct", Rate(1, 80))
    made.put("ours", "usefulness", LOSS, Estimate(1.5, 200, (1.4, 1.6)))
    made.put("ours", "cost", Measure("seconds", "seconds", "number"), 12)
    grid = Grid("Head")
    grid.put("safety head", Measure("a", "a | b", "number"), Estimate(0.99, 300, (0.98, math.inf)))
    made.grids["head"] = grid
    made.notes.append("judged by rules")
    return made


def test_json_contract(tmp_path: Path) -> None:
    path = summary().to_json(tmp_path / "report" / "summary.json")
    data = json.loads(path.read_text())
    assert set(AREAS) <= set(data)
    cell = data["attack_success"]["ours"]["direct"]
    assert cell["value"] == 1 / 80 and cell["n"] == 80 and cell["k"] == 1 and len(cell["interval"]) == 2
    assert data["over_refusal"] == {}
    assert [entry.name for entry in path.parent.iterdir()] == ["summary.json"]  # no temporary file stays


def test_read_back_is_the_same(tmp_path: Path) -> None:
    made = summary()
    json_path, markdown_path = made.write(tmp_path)
    again = Summary.from_json(json_path)
    assert again.to_dict() == made.to_dict() and again.to_markdown() == made.to_markdown()
    assert markdown_path.read_text() == made.to_markdown()


def test_markdown_shows_counts_intervals_and_gaps() -> None:
    text = summary().to_markdown()
    assert "98.8 % (79/80; 93.3–99.8)" in text and "direct requests (goal ≤ 5 %)" in text
    assert "1.500 (n=200; 1.400–1.600)" in text and "a \\| b" in text and "judged by rules" in text
    assert "False refusals" not in text  # an empty area is left out


def test_missing_cells_show_a_dash() -> None:
    made = summary()
    made.put("undefended", "attack_success", Measure("p", "prefill"), Rate(0, 0))
    assert made.areas["attack_success"].to_markdown().count("–") >= 2
    assert Cell.of(Rate(0, 0)).value is None


def test_misuse_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no area 'speed'"):
        summary().put("ours", "speed", DIRECT, 1.0)
    with pytest.raises(DataError, match="add_system"):
        summary().put("theirs", "cost", DIRECT, 1.0)
    with pytest.raises(DataError, match="no measure 'x'"):
        summary().put("ours", "cost", "x", 1.0)
    (tmp_path / "bad.json").write_text("{}")
    for name in ("bad.json", "absent.json"):
        with pytest.raises(DataError, match="not a summary"):
            Summary.from_json(tmp_path / name)


def test_numbers_keep_three_places_where_they_matter() -> None:
    assert [number_text(x) for x in (0.9934, 2.306, 41.8, 410.2)] == ["0.993", "2.31", "41.8", "410"]
    assert Cell.of({"value": 0.5, "n": 2, "interval": [0.1, 0.9]}).text(interval=False) == "50.0 % (n=2)"
