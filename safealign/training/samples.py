"""The table of single outcomes for a tracker: ids and what the model did, and no text.

Redacted by construction: rows are made of cells (`evaluation.cells`), which never hold a prompt or an answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from safealign.data.records import BENIGN, MALICIOUS
from safealign.decoding.options import CalibratedThresholds
from safealign.evaluation.cells import Cell
from safealign.evaluation.systems import System
from safealign.reporting.summary import Summary

COLUMNS = ("id", "set", "label", "p", "verdict", "tokens", "what the model did", "attack succeeded")
_BENIGN_SETS = ("benign", "over_refusal")


def sample_rows(system: System, cells: Iterable[Cell]) -> list[list[Any]]:
    """One row per prompt of the system's cells, in the order of `COLUMNS`.

    `p` and `verdict` are those of the request under the deployed threshold; None without a verdict. `tokens`: length
    of the answer.
    """
    threshold = query_threshold(system)
    return [row for cell in cells if cell.system == system.name for row in _rows(cell, threshold)]


def query_threshold(system: System) -> float | None:
    """θ_query as a probability; None where the request's verdict is off."""
    model = system.model
    options = model.options.override(dict(system.options))
    logit = options.rules(model.thresholds).theta_query if system.guarded else None
    return None if logit is None else (model.thresholds or CalibratedThresholds()).p(logit)


def final_figures(summary: Summary) -> dict[str, float]:
    """`evaluation/<area>/<system>/<measure>` → value, for every figure that has one."""
    return {
        f"evaluation/{name}/{system}/{measure}": cell.value
        for name, area in summary.areas.items()
        for system, cells in area.cells.items()
        for measure, cell in cells.items()
        if cell.value is not None
    }


def _rows(cell: Cell, threshold: float | None) -> Iterable[list[Any]]:
    harmful = cell.measure not in _BENIGN_SETS
    outcomes = zip(cell.ids, cell.p, cell.tokens, cell.refused, cell.intervened_at, cell.succeeded, strict=True)
    for id_, p, tokens, refused, at, succeeded in outcomes:
        verdict = None if p is None or threshold is None else MALICIOUS if p >= threshold else BENIGN
        did = _did(refused, at)
        label = MALICIOUS if harmful else BENIGN
        yield [id_, cell.measure, label, p, verdict, tokens, did, succeeded if harmful else None]


def _did(refused: bool, intervened_at: int | None) -> str:
    if intervened_at is None:
        return "refused by itself" if refused else "answered"
    return f"interrupted at token {intervened_at}" if intervened_at else "refused at the start"
