"""The trainers as a run builds them: what the metrics of an evaluation are told apart by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console
from small_runs import records

from safealign.config import compose
from safealign.data.records import MALICIOUS
from safealign.data.rendering import Renderer
from safealign.modeling.tiny import tiny_model, tiny_tokenizer
from safealign.training.checks import config_problems
from safealign.training.examples import build_examples
from safealign.training.prepare import TrainingData, example_settings
from safealign.training.run import attach_from, build_trainer


def test_an_evaluation_knows_the_categories_of_its_own_examples(tmp_path: Path) -> None:
    config, renderer = compose(["+recipe=llama_lora", "debug=smoke", f"run_dir={tmp_path}"]), Renderer(tiny_tokenizer())
    known = [replace(r, category="deed" if r.label == MALICIOUS else "fold") for r in records()]
    examples = build_examples(known, renderer, example_settings(config), config.seed)
    model = tiny_model()
    parts = attach_from(config, model, renderer)
    data = TrainingData(examples[:4], examples[4:], [], [], [], [])
    metrics = build_trainer(config, model, renderer, data, parts, Console(quiet=True)).evaluate()
    assert "eval_safety/request/auroc/deed" in metrics and "eval_safety/request/auroc/other" not in metrics


def test_weights_in_4_bits_without_an_adapter_are_refused_in_every_objective() -> None:
    for objective in ("sft", "dpo", "pretraining"):
        config = compose([f"objective={objective}", "adapter=none", "adapter.quantization=nf4", "suite=none"])
        assert any("4-bit weights cannot be trained" in line for line in config_problems(config)), objective
