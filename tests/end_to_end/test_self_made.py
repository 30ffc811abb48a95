"""A whole run on texts of the model's own: they train it, and lie nowhere but in the cache."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from safealign.commands import run_command
from safealign.modeling.tiny import tiny_tokenizer
from safealign.sampling.writer import Writer
from safealign.train import main

KINDS = ("everyday", "compliant", "distilled", "deep", "splices", "benign_splices")
# What no other text of the run holds.
MARK = "quuxly"


def _scripted(self: Writer, prompts: Sequence[Any], max_new_tokens: int, *rest: Any) -> list[tuple[int, ...]]:
    """Another sentence of the same kind for each prompt, ended."""
    tokenizer = tiny_tokenizer()
    line = MARK + " {0} goes first to the " + MARK + " wood, then over to number {0} and home again."
    texts = [line.format(i) for i in range(len(prompts))]
    return [(*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id) for text in texts]


def test_no_text_of_the_models_own_leaves_the_cache(
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    run_dir, cache = tmp_path / "run", tmp_path / "cache"
    monkeypatch.setenv("SAFEALIGN_CACHE", str(cache))
    monkeypatch.setattr(Writer, "write", _scripted)
    caplog.set_level(logging.DEBUG)
    asked = [f"data.sampling.{kind}=8" for kind in KINDS]
    settings = ["data.max_length=160", "data.mix.limit=24", "trainer.max_steps=2", f"run_dir={run_dir}"]
    assert run_command(main, argv=[*overrides, *asked, *settings]) == 0
    report = json.loads((run_dir / "export" / "safety.json").read_text(encoding="utf-8"))["training"]
    kinds = {name.rpartition("+")[2].partition("/")[0] for name in report["self_made"]}
    assert kinds == {f"sampled_{kind}" for kind in KINDS if kind != "benign_splices"}
    assert MARK in "".join(path.read_text(encoding="utf-8") for path in (cache / "sampled").glob("*.jsonl"))
    shown = capfd.readouterr()
    assert MARK not in shown.out + shown.err + caplog.text
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert len(files) > 10 and not [path.name for path in files if MARK.encode() in path.read_bytes()]
