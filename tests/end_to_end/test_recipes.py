"""Every recipe composes, and goes the whole way in smoke form on a tiny random model of its architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import safealign
from safealign.commands import run_command
from safealign.config import compose, conf_dir
from safealign.config.overrides import options_of
from safealign.train import main

RECIPES = options_of("recipe")
# What a smoke run loses with the recipe's model: its architecture and what else matters of it.
MODELS: dict[str, list[str]] = {
    "mistral_lora": ["model.architecture=mistral"],
    "qwen_lora": ["model.architecture=qwen2"],
    "gemma_lora": ["model.architecture=gemma3"],
    "ess_paper_llama2": ["model.chat_template=plain"],
    "ess_paper_mistral": ["model.architecture=mistral"],
}
ASKED = [{"role": "user", "content": "How do I fold a paper bird?"}]


def runs_in_4_bits() -> bool:
    from importlib.util import find_spec

    return torch.cuda.is_available() and find_spec("bitsandbytes") is not None


def job(recipe: str, overrides: list[str], folder: Path, *more: str) -> int:
    """The smoke job of a recipe on the tests' own records; the exit code."""
    own = [f"+recipe={recipe}" if item.startswith("+recipe=") else item for item in overrides]
    return run_command(main, argv=[*own, *MODELS.get(recipe, []), f"run_dir={folder}", *more])


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_composes_and_says_what_it_needs(recipe: str) -> None:
    config = compose([f"+recipe={recipe}"])
    assert (config.name, config.run_dir) == (recipe, f"outputs/{recipe}")
    header = (conf_dir() / "recipe" / f"{recipe}.yaml").read_text(encoding="utf-8").split("defaults:")[0]
    assert header.splitlines()[1].endswith(f"+recipe={recipe}")
    assert any(word in header for word in ("GPU", "CPU", "A6000")), "the header names the hardware"
    readme = (conf_dir().parent / "recipes" / recipe / "README.md").read_text(encoding="utf-8")
    assert f"+recipe={recipe}" in readme and readme.startswith(f"# {recipe}\n")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_goes_the_whole_way(recipe: str, overrides: list[str], tmp_path: Path) -> None:
    config = compose([f"+recipe={recipe}"])
    in_4_bits = config.adapter.quantization is not None
    more = ["adapter.quantization=null"] if in_4_bits and not runs_in_4_bits() else []
    if config.objective.name == "srr":  # what a random model says is neither sure nor sorry: its openings are
        more += ["ranker.judge=keywords", "data.val_fraction=0.4"]
    assert job(recipe, overrides, tmp_path / "run", *more) == 0
    model = safealign.load(tmp_path / "run" / "export")
    if config.objective.name == "srr":
        assert len(model.generate(ASKED, max_new_tokens=4, best_of=3).candidates) == 3
        return
    # The stage on raw documents calibrates nothing: its export judges, and has no thresholds to act by.
    uncalibrated = dict.fromkeys(("theta_query", "theta_window", "theta_prefix", "theta_token"))
    out = model.generate(ASKED, max_new_tokens=4, **(uncalibrated if config.objective.name == "pretraining" else {}))
    assert out.p is not None and abs(out.p - model.score(ASKED)) < 1e-4


@pytest.mark.skipif(runs_in_4_bits(), reason="4-bit weights run here")
def test_where_4_bits_cannot_run_one_sentence_says_what_to_do(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job("llama_qlora", overrides, tmp_path / "run") == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert "4-bit base weights need" in printed and "adapter=lora" in printed
    assert "Traceback" not in printed


def test_the_papers_settings() -> None:
    llama, mistral = (compose([f"+recipe=ess_paper_{name}"]) for name in ("llama2", "mistral"))
    assert (llama.safety.lambda_cls, llama.trainer.epochs, llama.model.chat_template) == (0.1, 15, "plain")
    assert (mistral.safety.lambda_cls, mistral.trainer.epochs) == (0.01, 8)
    for config in (llama, mistral):
        safety, decoding = config.safety, config.decoding
        assert (safety.placement, safety.head.layers, safety.head.pool) == ("prepend", [1.0], ["row"])
        assert not safety.head.separate_windows and not safety.head.token_layers and not safety.warm_start
        assert (decoding.r1, decoding.r2, decoding.r3, decoding.tau, decoding.schedule) == (10, 10, 10, 3, "annealing")
