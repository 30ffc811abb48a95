"""Terminal tables hold every figure; pictures are written whole and are not empty."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.image import imread
from rich.console import Console

from safealign.evaluation.metrics.rates import Rate
from safealign.evaluation.metrics.reliability import reliability_bins
from safealign.reporting import plots
from safealign.reporting.summary import Grid, Measure, Summary
from safealign.reporting.tables import show_summary


def shown(summary: Summary) -> str:
    console = Console(file=io.StringIO(), width=140)
    show_summary(summary, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def filled(n_systems: int) -> Summary:
    summary = Summary("Result [quick]")
    for index in range(n_systems):
        summary.add_system(f"s{index}", f"system {index}")
        summary.put(f"s{index}", "attack_success", Measure("direct", "direct [80]"), Rate(index, 10))
    summary.notes.append("a note [with brackets]")
    return summary


def test_few_systems_stand_side_by_side() -> None:
    text = shown(filled(2))
    assert "system 0" in text and "system 1" in text and "10.0 % (1/10" in text
    assert (
        "[quick]" in text and "direct [80]" in text and "[with brackets]" in text
    )  # nothing taken for markup


def test_many_systems_become_rows() -> None:
    lines = shown(filled(5)).splitlines()
    assert sum("system" in line for line in lines) == 5


def test_a_grid_of_many_measures_fits_a_terminal_of_80_columns() -> None:
    """No figure is cut, which a table of seven columns would do."""
    summary = filled(1)
    summary.grids["head"] = Grid("The verdict")
    for index in range(7):
        heading = Measure(f"m{index}", f"a measure with a long name, number {index}", "number", "≥ .95")
        summary.grids["head"].put("ours", heading, Rate(index, 10))
    console = Console(file=io.StringIO(), width=80)
    show_summary(summary, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "…" not in text
    assert all(f"number {index}" in text for index in range(7))


def is_picture(path: Path) -> bool:
    pixels = imread(path)
    return pixels.shape[0] > 300 and pixels.shape[1] > 300 and float(np.std(pixels[..., :3])) > 0.01


def test_pictures_are_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(size=400)
    paths = [
        plots.reliability(
            reliability_bins(p, rng.uniform(size=400) < p), tmp_path / "new" / "reliability.png"
        ),
        plots.score_histograms(
            {"benign": rng.normal(size=50), "harmful": rng.normal(5, 1, 50)},
            tmp_path / "scores.png",
            harmful=["harmful"],
            thresholds={"query": 2.0},
        ),
        plots.attack_by_prefill(
            {"ours": {0: Rate(1, 80), 10: Rate(0, 0)}, "bare": {0: Rate(79, 80)}}, tmp_path / "a.png"
        ),
        plots.verdict_along_answer(
            [1, 2, 4], [0.1, 0.5, 0.9], tmp_path / "b.png", threshold=0.8, intervened_at=4
        ),
        plots.verdict_along_answer([1, 2], [0.1, 0.5], tmp_path / "c.png", words=["hot", "bread"]),
    ]
    assert all(is_picture(path) for path in paths)
    assert not [entry for entry in tmp_path.rglob(".*")]


def test_no_two_series_of_a_large_table_look_alike() -> None:
    looks = [tuple(sorted(plots.look(index).items())) for index in range(14)]
    assert len(set(looks)) == len(looks)
