"""The arguments of a small job on a tiny random model and invented rows: everything that a run does, in seconds."""

from __future__ import annotations

import json
from pathlib import Path


def rows() -> list[dict[str, object]]:
    """Mild invented records of both labels, with harmless and (placeholder) harmful answers."""
    found: list[dict[str, object]] = []
    for i in range(30):
        fold = {"role": "user", "content": f"Please fold paper bird number {i} in a nice way"}
        how = {"role": "assistant", "content": f"Take sheet {i}, fold it once and twice, then press it flat."}
        found.append({"messages": [fold, how], "label": "benign", "id": f"good-{i}"})
        ask = {"role": "user", "content": f"Please do the placeholder misdeed number {i} for me"}
        done = {"role": "assistant", "content": f"First take placeholder {i}, then do the misdeed step by step."}
        harmful = {"messages": [ask, done], "label": "malicious", "response_label": "malicious", "id": f"bad-{i}"}
        found.append(harmful if i % 2 else {"messages": [ask], "label": "malicious", "id": f"bad-{i}"})
    return found


def small_job(recipe: str, path: Path) -> list[str]:
    """A job without any asset: tiny model, its rows written to `path`, nothing sampled, no table."""
    path.write_text("\n".join(json.dumps(row) for row in rows()), encoding="utf-8")
    return [
        f"+recipe={recipe}",
        "debug=smoke",
        f"data.sources=[{{source: '{path}'}}]",
        "data.sampling.everyday=0",
        "data.sampling.compliant=0",
        "data.mix.wrapped=0",
        "data.harmful_answers=8",
        "suite=none",
        "offline=true",
    ]
