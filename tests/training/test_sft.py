"""The trainer as a whole: it learns the verdict, reports it, and its collator builds what the layout says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safealign.data.records import BENIGN, MALICIOUS
from safealign.layout.collate import collate_layouts
from safealign.training.collator import SafetyCollator
from safealign.training.safety_loss import SafetyObjective


def _separable(kit, n: int = 12) -> list:
    records = [kit.record(f"the sea {i}", "It is wide.", BENIGN, category="sea") for i in range(n)]
    return records + [kit.record(f"ZZZ deed {i}", "Sorry, no.", MALICIOUS, category="deed") for i in range(n)]


def test_training_lowers_the_safety_loss_and_evaluation_reports_it(kit, tmp_path: Path) -> None:
    examples = kit.examples(_separable(kit))
    trainer = kit.safe_trainer(
        tmp_path,
        examples,
        SafetyObjective(lambda_cls=1.0),
        evaluation=True,
        max_steps=25,
        optim="adamw_torch",
        learning_rate=1e-2,
        per_device_train_batch_size=8,
    )
    trainer.categories = {index: example.category for index, example in enumerate(examples)}
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    logged = [entry["safety/loss"] for entry in trainer.state.log_history if "safety/loss" in entry]
    assert logged[-1] < 0.5 * logged[0]
    assert after["eval_loss"] < before["eval_loss"]
    assert after["eval_safety/request/auroc"] > 0.99
    assert after["eval_safety/request/auroc/deed"] > 0.99
    assert "eval_safety/request/recall@0.05" in after


def test_evaluation_changes_no_gradient_state_and_forgets_its_verdicts(kit, tmp_path: Path) -> None:
    trainer = kit.safe_trainer(tmp_path, kit.examples(_separable(kit, 2)), SafetyObjective(), evaluation=True)
    first, second = trainer.evaluate(), trainer.evaluate()
    assert first["eval_loss"] == pytest.approx(second["eval_loss"])
    assert len(trainer.take_verdicts()["labels"]) == 0


def test_a_run_repeats_itself(kit, tmp_path: Path) -> None:
    examples = kit.examples(kit.every_pairing())
    runs = [kit.run(kit.safe_trainer(tmp_path, examples, SafetyObjective(1.0), peft=kit.lora())) for _ in range(2)]
    assert runs[0].losses == runs[1].losses
    for name, weight in runs[0].weights.items():
        assert torch.equal(weight, runs[1].weights[name]), name


def test_the_collator_pads_text_and_hands_the_layouts_on(kit) -> None:
    examples = kit.examples(kit.every_pairing())
    pad = kit.renderer.tokenizer.pad_token_id
    batch = SafetyCollator(examples, pad)([{"example": i} for i in (0, 6, 3)])
    chosen = [examples[i] for i in (0, 6, 3)]
    width = max(len(example.input_ids) for example in chosen)
    for row, example in enumerate(chosen):
        n = len(example.input_ids)
        assert batch["input_ids"][row].tolist() == [*example.input_ids, *[pad] * (width - n)]
        assert batch["labels"][row].tolist() == [*example.labels, *[-100] * (width - n)]
        assert batch["attention_mask"][row].tolist() == [1] * n + [0] * (width - n)
    expected = collate_layouts([example.layout for example in chosen], width).as_dict()
    assert batch.keys() == {"input_ids", "labels", "attention_mask", "safety_example", *expected}
    for name, value in expected.items():
        assert torch.equal(batch[name], value)
    assert batch["safety_example"].tolist() == [0, 6, 3]
