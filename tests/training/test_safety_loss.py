"""The mixin over TRL: what is added to the loss, odd batches, number formats, and the optimizer's groups."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from safealign.data.records import BENIGN, MALICIOUS
from safealign.layout import RowKind
from safealign.objectives.safety_bce import safety_bce
from safealign.training.examples import IGNORED
from safealign.training.safety_loss import SafetyObjective, Verdicts, compact_labels

ON = SafetyObjective(lambda_cls=1.0)


def _parts(trainer: Any) -> dict[str, torch.Tensor]:
    return {n: p for n, p in trainer.model.named_parameters() if "safety_" in n and "original_module" not in n}


def test_the_loss_is_trls_plus_lambda_times_the_cross_entropy(kit, tmp_path: Path) -> None:
    from safealign.modeling.features import layout_logits

    examples = kit.examples(kit.every_pairing())
    runs = {}
    for weight in (0.0, 0.25):
        trainer = kit.safe_trainer(
            tmp_path,
            examples,
            SafetyObjective(weight),
            max_steps=1,
            per_device_train_batch_size=len(examples),
        )
        found = layout_logits(trainer.parts, [e.input_ids for e in examples], [e.layout for e in examples])
        runs[weight] = kit.run(trainer).losses[0]
    rows = [
        (z, row.label)
        for e, logits in zip(examples, found, strict=True)
        for z, row in zip(logits, e.layout.safety, strict=True)
    ]
    labels = torch.tensor([IGNORED if label is None else label for _, label in rows])
    expected = safety_bce(torch.stack([z for z, _ in rows]), labels.float())
    assert runs[0.25] - runs[0.0] == pytest.approx(0.25 * expected.item(), abs=2e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("name", "learns_lm", "learns_safety"),
    [("no safety label", True, False), ("no target", False, True), ("neither", False, False)],
)
def test_odd_batches_train_what_they_can(
    kit, tmp_path: Path, name: str, learns_lm: bool, learns_safety: bool, accumulate: int
) -> None:
    records = {
        "no safety label": [kit.record(f"Hi {i}", "Well then", label=None, judged=None) for i in range(4)],
        "no target": [kit.record(f"Hi {i}", None, MALICIOUS if i % 2 else BENIGN) for i in range(4)],
        "neither": [kit.record(f"Hi {i}", None, None) for i in range(4)],
    }[name]
    settings = {"windows_per_answer": 0, "gate_closed_share": 1.0}
    trainer = kit.safe_trainer(
        tmp_path, kit.examples(records, **settings), ON, max_steps=1, gradient_accumulation_steps=accumulate
    )
    ran = kit.run(trainer)
    gradients = ran.gradients[0]
    assert math.isfinite(ran.losses[0])
    assert gradients["safety_head.linear.weight"].any() == learns_safety
    assert any(grad.any() for n, grad in gradients.items() if "safety" not in n) == (learns_lm or learns_safety)
    assert (ran.losses[0] > 0) == (learns_lm or learns_safety)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "adapter"])
def test_token_and_head_stay_fp32_under_bf16(kit, tmp_path: Path, adapter: bool) -> None:
    examples = kit.examples(kit.every_pairing())
    trainer = kit.safe_trainer(tmp_path, examples, ON, bf16=True, peft=kit.lora() if adapter else None, max_steps=1)
    seen: list[torch.Tensor] = []
    trainer.parts.head.register_forward_hook(lambda module, args, out: seen.append(out))
    assert {p.dtype for p in _parts(trainer).values()} == {torch.float32}
    ran = kit.run(trainer)
    assert {p.dtype for p in _parts(trainer).values()} == {torch.float32}
    assert {out.dtype for out in seen} == {torch.float32}
    assert math.isfinite(ran.losses[0]) and ran.gradients[0]["safety_head.linear.weight"].any()


def test_parts_that_a_trainer_cast_are_cast_back(kit, tmp_path: Path) -> None:
    """TRL casts trainable parameters of quantised models to bf16, after the parts were attached."""
    trainer = kit.safe_trainer(tmp_path, kit.examples(kit.every_pairing()), ON, peft=kit.lora())
    trainer.model.to(torch.bfloat16)
    trainer.set_safety(trainer.parts, ON)
    assert {p.dtype for p in _parts(trainer).values()} == {torch.float32}
    assert trainer.parts.head.modules_to_save["default"].scale.dtype is torch.float32


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "adapter"])
@pytest.mark.parametrize("rate", [None, 0.5])
def test_every_trained_parameter_is_in_the_optimizer_once(
    kit, tmp_path: Path, rate: float | None, adapter: bool
) -> None:
    objective = SafetyObjective(head_learning_rate=rate)
    peft = kit.lora() if adapter else None
    trainer = kit.safe_trainer(tmp_path, kit.examples(kit.every_pairing()), objective, peft=peft, weight_decay=0.1)
    optimizer = trainer.create_optimizer()
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    wanted = [id(p) for p in trainer.model.parameters() if p.requires_grad]
    assert sorted(held) == sorted(wanted) and len(set(held)) == len(held)
    own = {id(p) for name, p in _parts(trainer).items() if "head" in name}
    assert len(own) == 2
    rates = {group["lr"] for group in optimizer.param_groups if own & {id(p) for p in group["params"]}}
    others = {group["lr"] for group in optimizer.param_groups if {id(p) for p in group["params"]} - own}
    assert (rates, others) == ({rate or 0.1}, {0.1})


def test_the_heads_learning_rate_is_the_step_it_takes(kit, tmp_path: Path) -> None:
    examples = kit.examples(kit.every_pairing())
    objective = SafetyObjective(lambda_cls=1.0, head_learning_rate=0.5)
    trainer = kit.safe_trainer(tmp_path, examples, objective, max_steps=1)
    before = {name: value.detach().clone() for name, value in _parts(trainer).items()}
    ran = kit.run(trainer)
    for name, value in _parts(trainer).items():
        rate = 0.5 if "head" in name else 0.1
        torch.testing.assert_close(before[name] - value, rate * ran.gradients[0][name], atol=1e-5, rtol=1e-4)


def test_the_standardisation_is_not_trained(kit, tmp_path: Path) -> None:
    trainer = kit.safe_trainer(tmp_path, kit.examples(kit.every_pairing()), ON, peft=kit.lora())
    assert not any(name.endswith(("head.mean", "head.scale")) for name in _parts(trainer))
    head = trainer.parts.head.modules_to_save["default"]
    before = head.mean.clone(), head.scale.clone()
    kit.run(trainer)
    assert torch.equal(head.mean, before[0]) and torch.equal(head.scale, before[1])


def test_compact_labels_pair_each_predicting_row_with_its_target() -> None:
    labels = torch.tensor([[-100, -100, 7, 8], [-100, 9, -100, -100]])
    chosen, shifted = compact_labels(labels)
    assert chosen.tolist() == [[False, True, True, False], [True, False, False, False]]
    assert shifted.tolist() == [[7, 8, 9]]


def test_compact_labels_never_train_the_first_token_and_are_never_empty() -> None:
    chosen, shifted = compact_labels(torch.tensor([[5, -100, -100], [-100, -100, -100]]))
    assert chosen.sum() == 1 and shifted.tolist() == [[-100]]


def test_verdicts_keep_labelled_rows_with_their_example(kit) -> None:
    examples = kit.examples(kit.every_pairing())
    from safealign.layout.collate import SafetyBatch
    from safealign.training.collator import SafetyCollator

    inputs = SafetyCollator(examples, 0)([{"example": i} for i in (3, 1)])
    batch = SafetyBatch.pop_from(inputs)
    gathered = Verdicts()
    gathered.add(torch.zeros_like(batch.labels), batch, inputs["safety_example"])
    found = gathered.tensors()
    for index in (3, 1):
        mine = [row for row in examples[index].layout.safety if row.label is not None]
        at = found["examples"] == index
        assert found["labels"][at].tolist() == [row.label for row in mine]
        assert [RowKind(int(kind)) for kind in found["kinds"][at]] == [row.kind for row in mine]
    assert len(found["labels"]) == len(found["logits"])


def test_no_verdicts_are_empty_tensors() -> None:
    assert {len(value) for value in Verdicts().tensors().values()} == {0}
