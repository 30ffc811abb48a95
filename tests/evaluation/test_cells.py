"""Cells are kept by what was asked of whom, hold no text, and are measured again when any of it changes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from safealign.data.records import MALICIOUS
from safealign.evaluation.attacks import DirectAttack, PrefillAttack
from safealign.evaluation.cells import Cell, measure
from safealign.evaluation.systems import System

NAME = "direct"


def _measure(system: System, kit: Any, folder: Path | None, n: int = 3, tokens: int = 3, **more: Any) -> Cell:
    records = kit.prompts(n, MALICIOUS)
    return measure(system, DirectAttack(), records, NAME, max_new_tokens=tokens, batch_size=2, folder=folder, **more)


def _forbid(monkeypatch: pytest.MonkeyPatch, system: System) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(system.model, "generate_batch", refuse)


def test_a_cell_is_read_back_and_not_measured_again(kit, tmp_path: Path, monkeypatch) -> None:
    system = System("ours", kit.defended())
    first = _measure(system, kit, tmp_path)
    _forbid(monkeypatch, system)
    assert _measure(system, kit, tmp_path) == first
    assert len(first.ids) == len(first.p) == first.success.n == 3


@pytest.mark.parametrize("change", ["prompts", "length", "options", "weights", "late weight", "head", "card"])
def test_whatever_changes_is_measured_again(kit, tmp_path: Path, change: str, monkeypatch) -> None:
    system, n, tokens = System("ours", kit.defended()), 3, 3
    _measure(system, kit, tmp_path)
    if change == "prompts":
        n = 4
    elif change == "length":
        tokens = 4
    elif change == "options":
        system = replace(system, options={"gate": False})
    elif change == "weights":
        system = System("ours", kit.defended(seed=1))
    elif change in ("late weight", "head"):
        system = System("ours", kit.defended())
        named = dict(system.model.hf.named_parameters())
        name = next(n for n in named if ("safety_head" if change == "head" else "down_proj") in n)
        with torch.no_grad():
            named[name].view(-1)[-1] += 1.0
    else:
        system = System("ours", kit.defended(tau=1))
    _forbid(monkeypatch, system)
    with pytest.raises(AssertionError, match="measured again"):
        _measure(system, kit, tmp_path, n, tokens)


def test_two_bare_models_are_told_apart_by_their_weights(kit, tmp_path: Path, monkeypatch) -> None:
    _measure(System("undefended", kit.bare()), kit, tmp_path)
    other = System("undefended", kit.bare(seed=1))
    _forbid(monkeypatch, other)
    with pytest.raises(AssertionError, match="measured again"):
        _measure(other, kit, tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 1}', '{"cell": {}}'])
def test_a_torn_file_counts_as_none(kit, tmp_path: Path, content: str) -> None:
    system = System("ours", kit.defended())
    first = _measure(system, kit, tmp_path)
    path = next(tmp_path.glob("*.json"))
    path.write_text(content, encoding="utf-8")
    again = _measure(system, kit, tmp_path)
    assert replace(again, seconds=first.seconds) == first


def test_no_text_is_kept(kit, tmp_path: Path) -> None:
    kept: list[Any] = []
    system = System("ours", kit.defended())
    _measure(system, kit, tmp_path, keep=kept)
    written = next(tmp_path.glob("*.json")).read_text(encoding="utf-8")
    cell = json.loads(written)["cell"]
    assert "Tell of" not in written and len(kept) == 3
    strings = [value for values in cell.values() if isinstance(values, list) for value in values if type(value) is str]
    assert strings == cell["ids"]


def test_an_answer_that_was_begun_by_the_caller_is_measured_too(kit, tmp_path: Path) -> None:
    attack = PrefillAttack(4, kit.bare().tokenizer)
    system = System("ours", kit.defended())
    cell = measure(system, attack, kit.prompts(2), attack.name, max_new_tokens=2, batch_size=2, folder=tmp_path)
    assert cell.success.n == 2 and cell.safety_rows > 2


def test_no_prompts_make_an_empty_cell(kit) -> None:
    cell = _measure(System("ours", kit.defended()), kit, None, n=0)
    assert cell.success.n == 0 and cell.tokens == ()
