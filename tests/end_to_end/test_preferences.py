"""Preferences from command to export: alone and after fine-tuning, with pairs of the user's own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import safealign
from safealign.commands import run_command
from safealign.train import main as train
from safealign.training import run
from safealign.training.run import build_trainer
from safealign.validate import main as validate


@pytest.fixture(scope="module")
def own_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {
            "prompt": f"How do I shoot bird picture {i}?",
            "chosen": "Hold still, then press.",
            "rejected": "Sorry, I cannot fulfill your request because it may hurt.",
            "label": "benign",
        }
        for i in range(6)
    ]
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def _arguments(overrides: list[str], recipe: str, pairs: Path, *more: str) -> list[str]:
    own = [item for item in overrides if not item.startswith("+recipe")]
    return [
        f"+recipe={recipe}",
        *own,
        f"data.preferences.sources=[{{source: '{pairs}'}}]",
        "data.max_length=220",
        *more,
    ]


def _metrics(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def both_stages(overrides: list[str], own_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "job"
    assert run_command(train, argv=_arguments(overrides, "llama_sft_dpo", own_pairs, f"run_dir={folder}")) == 0
    return folder


def test_both_stages_run_and_end_in_one_export(both_stages: Path) -> None:
    rows = [row for row in _metrics(both_stages) if "stage" in row]  # what comes after training belongs to none
    of_rows = [str(row["stage"]) for row in rows]
    assert set(of_rows) == {"sft", "dpo"} and of_rows == sorted(of_rows, reverse=True)
    dpo = set().union(*(row for row in rows if row["stage"] == "dpo"))
    names = {"dpo/loss", "dpo/sft_loss", "rewards/margins", "safety/loss", "eval_safety/request/auroc"}
    assert names | {"eval_safety/window/auroc", "eval_dpo/loss"} <= dpo
    assert [path.name for path in (both_stages / "checkpoints").iterdir()] == ["step-8"]
    out = safealign.load(both_stages / "export").generate(
        [{"role": "user", "content": "Fold a bird"}], max_new_tokens=4
    )
    assert out.p is not None


def test_pairs_of_both_labels_and_of_the_users_own_are_counted(both_stages: Path) -> None:
    card = json.loads((both_stages / "export" / "safety.json").read_text(encoding="utf-8"))
    pairs = card["training"]["pairs"]
    assert set(pairs["labels"]) == {"benign", "malicious"} and pairs["sources"]["pairs"] > 0
    assert card["training"]["examples"]["train"] > 0


def test_the_second_stage_of_the_command_starts_where_the_first_ended(
    overrides: list[str], own_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: dict[str, dict[str, torch.Tensor]] = {}
    starts: dict[str, dict[str, torch.Tensor]] = {}

    def weights(trainer: Any) -> dict[str, torch.Tensor]:
        kept = ("lora_", "safety_")
        named = {n: p for n, p in trainer.model.named_parameters() if any(part in n for part in kept)}
        return {name: p.detach().clone() for name, p in named.items() if ".default" in name}

    def watched(*args: Any) -> Any:
        stage, trainer = args[-1], build_trainer(*args)
        starts[stage], plain = weights(trainer), trainer.train

        def train_and_look() -> Any:
            plain()
            ends[stage] = weights(trainer)

        trainer.train = train_and_look
        return trainer

    monkeypatch.setattr(run, "build_trainer", watched)
    assert (
        run_command(train, argv=_arguments(overrides, "llama_sft_dpo", own_pairs, f"run_dir={tmp_path / 'job'}")) == 0
    )
    assert starts["dpo"].keys() == ends["sft"].keys() and any("safety_head" in name for name in ends["sft"])
    assert all(torch.equal(starts["dpo"][name], value) for name, value in ends["sft"].items())
    assert any(not torch.equal(starts["sft"][name], value) for name, value in ends["sft"].items() if "lora_B" in name)


def test_preferences_alone_train_on_pairs_alone(overrides: list[str], own_pairs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    arguments = _arguments(overrides, "llama_dpo", own_pairs, f"run_dir={folder}", "safety.gate.closed_share=1")
    assert run_command(train, argv=arguments) == 0
    rows = _metrics(folder)
    losses = [row["dpo/loss"] for row in rows if "dpo/loss" in row]
    assert not any("stage" in row for row in rows) and losses[0] == pytest.approx(0.693147, abs=1e-4)
    card = json.loads((folder / "export" / "safety.json").read_text(encoding="utf-8"))
    assert card["training"]["examples"]["train"] == 0 and card["training"]["pairs"]["train"] > 0


@pytest.mark.parametrize("recipe", ["llama_dpo", "llama_sft_dpo"])
def test_validate_estimates_every_stage(
    overrides: list[str], own_pairs: Path, tmp_path: Path, recipe: str, capsys
) -> None:  # type: ignore[no-untyped-def]
    argv = _arguments(overrides, recipe, own_pairs, f"run_dir={tmp_path / 'none'}")
    assert run_command(validate, argv=argv, record=False, tolerant=True) == 0
    shown = capsys.readouterr().out
    assert re.findall(r"^(\w+) estimate:", shown, re.MULTILINE) == (["sft"] if "sft" in recipe else []) + ["dpo"]
    assert "no problem found" in shown and not (tmp_path / "none").exists()


def test_validate_names_faulty_pairs_and_losses(overrides: list[str], tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "wrong.jsonl"
    swapped = {"prompt": "Do the misdeed", "chosen": "First, do it so.", "rejected": "Sorry, I cannot help."}
    path.write_text(json.dumps(swapped | {"label": "malicious"}), encoding="utf-8")
    losses = ["objective.dpo.loss_type=[exo_pair,sigmiod]", "objective.dpo.loss_weights=[1]"]
    argv = _arguments(overrides, "llama_dpo", path, *losses)
    assert run_command(validate, argv=argv, record=False, tolerant=True) == 2
    shown = capsys.readouterr().out
    for expected in ("wrong.jsonl:1: ", "exchanged?", "did you mean 'sigmoid'?", "exo_pair takes", "1 weights for 2"):
        assert expected in shown
