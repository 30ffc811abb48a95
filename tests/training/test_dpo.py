"""Preference training: what its first loss is, what it equals, and what each pair's rows are trained towards."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from inspect import getsource
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from safealign.config.groups import PREFERENCE_LOSSES
from safealign.data.preferences import Preference
from safealign.data.records import BENIGN, MALICIOUS, Message
from safealign.data.rendering import Renderer
from safealign.layout import RowKind
from safealign.layout.collate import SafetyBatch
from safealign.modeling.tiny import tiny_model, tiny_tokenizer
from safealign.training.dpo import SafetyDPOTrainer, forget_reference
from safealign.training.examples import IGNORED, ExampleSettings
from safealign.training.pair_examples import PairCollator, PairExample, build_pair_examples, pair_dataset
from safealign.training.safety_loss import SafetyObjective

OFF = SafetyObjective(lambda_cls=0.0)
BAD = "Step one, do the placeholder deed; step two, do it again."


def preference(
    prompt: str, chosen: str, rejected: str, label: str, rejected_label: str = BENIGN, **more: Any
) -> Preference:
    return Preference((Message("user", prompt),), chosen, rejected, label, rejected_label, id=prompt, **more)


def preferences() -> list[Preference]:
    """Both sorts, a harmful answer to a benign request, answers that were cut, and ones of several lengths."""
    return [
        preference("Do the forbidden thing", "Sorry, no. I would rather not.", BAD, MALICIOUS, MALICIOUS),
        preference("Name a tree", "The oak, and a wren sits in it.", "Sorry, no. That I cannot do.", BENIGN),
        preference("Say how the forbidden is done", "Sorry, no.", BAD, MALICIOUS, MALICIOUS, rejected_complete=False),
        preference("Tell me of the sea", "It is wide and", "Sorry, no. Never ever.", BENIGN, chosen_complete=False),
        preference("How are kites made", "From paper and string, with care.", BAD, BENIGN, MALICIOUS),
        preference("Is the deed hard", "Sorry, no. Ask me something kind.", "Sorry, no.", MALICIOUS),
        preference("Why is it cold", "It is winter.", "Sorry, no, for it is about weather.", BENIGN),
        preference("Do it once more", "Sorry, no, not now and not later.", BAD[:20], MALICIOUS, MALICIOUS),
    ]


def pairs_of(kit: Any, closed: float, **settings: Any) -> list[PairExample]:
    chosen = ExampleSettings(kit.trigger, gate_closed_share=closed, **settings)
    return build_pair_examples(preferences(), kit.renderer, chosen, 0)


def dpo_arguments(folder: Path, **more: Any) -> DPOConfig:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "learning_rate": 0.05,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "max_length": None,
        "prediction_loss_only": True,
        "dataloader_pin_memory": False,
        "precompute_ref_log_probs": True,
    }
    return DPOConfig(output_dir=str(folder), **(settings | more))


def safe_trainer(
    kit: Any,
    folder: Path,
    pairs: Sequence[PairExample],
    objective: SafetyObjective = OFF,
    *,
    peft: bool = False,
    sft_weight: float = 0.0,
    **more: Any,
) -> SafetyDPOTrainer:
    lm, parts = kit.safe_model()
    torch.manual_seed(0)
    return SafetyDPOTrainer(
        model=lm,
        args=dpo_arguments(folder, **more),
        train_dataset=pair_dataset(pairs),
        data_collator=PairCollator(pairs, tiny_tokenizer().pad_token_id),
        processing_class=tiny_tokenizer(),
        peft_config=kit.lora() if peft else None,
        parts=parts,
        objective=objective,
        sft_weight=sft_weight,
    )


class _PlainTrainer(DPOTrainer):  # type: ignore[misc]
    """TRL's own on the same token ids: its one change is not to tokenise."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


def plain_trainer(kit: Any, folder: Path, pairs: Sequence[PairExample], peft: bool = False, **more: Any) -> DPOTrainer:
    rows = pair_dataset(pairs)
    columns = {name: rows[name][:] for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
    torch.manual_seed(0)
    return _PlainTrainer(
        model=tiny_model("llama", layers=2),
        args=dpo_arguments(folder, **more),
        train_dataset=Dataset.from_dict(columns),
        processing_class=tiny_tokenizer(),
        peft_config=kit.lora() if peft else None,
    )


def logged(ran: Any, name: str) -> list[float]:
    return [entry[name] for entry in ran.trainer.state.log_history if name in entry]


# ---- what a pair's rows are trained towards --------------------------------------------------------------------


def _labels(side: Any, kind: RowKind) -> set[float | None]:
    return {row.label for row in side.layout.safety if row.kind is kind}


def test_row_0_counts_once_a_pair_and_windows_take_the_pairs_labels(kit) -> None:
    by_id = {pair.chosen.id: pair for pair in pairs_of(kit, 0.25)}
    for one in preferences():
        pair, malicious = by_id[one.id], float(one.label == MALICIOUS)
        assert _labels(pair.chosen, RowKind.REQUEST) == {malicious}
        assert _labels(pair.rejected, RowKind.REQUEST) == {None}
        assert _labels(pair.chosen, RowKind.WINDOW) == {0.0}
        assert _labels(pair.rejected, RowKind.WINDOW) == {float(one.rejected_label == MALICIOUS)}
        harmful = float(malicious or one.rejected_label == MALICIOUS)
        assert _labels(pair.rejected, RowKind.REFRESH) == {harmful}


def test_a_batch_has_as_many_labelled_requests_as_pairs(kit) -> None:
    pairs = pairs_of(kit, 0.25)
    inputs = PairCollator(pairs, 0)([{"example": i} for i in range(len(pairs))])
    batch = SafetyBatch.pop_from(inputs)
    labelled = (batch.kinds == RowKind.REQUEST) & (batch.labels >= 0)
    assert labelled.sum() == len(pairs) and not labelled[len(pairs) :].any()


def test_both_sides_of_a_pair_share_prompt_and_gate(kit) -> None:
    gates = set()
    for seed in range(6):
        for pair in build_pair_examples(preferences(), kit.renderer, ExampleSettings(kit.trigger), seed):
            seen = [any(version >= 0 for version in side.layout.sees) for side in pair.sides]
            assert seen[0] == seen[1]
            gates.add(seen[0])
            assert pair.chosen.input_ids[: pair.start] == pair.rejected.input_ids[: pair.start]
    assert gates == {True, False}


def test_the_gate_is_closed_about_as_often_as_asked(kit) -> None:
    settings = ExampleSettings(kit.trigger)
    drawn = [p for seed in range(60) for p in build_pair_examples(preferences()[:4], kit.renderer, settings, seed)]
    closed = sum(max(pair.chosen.layout.sees) < 0 for pair in drawn) / len(drawn)
    assert 0.15 < closed < 0.35


def test_the_collator_marks_answers_and_nothing_else(kit) -> None:
    pairs = pairs_of(kit, 0.25)
    batch = PairCollator(pairs, 7)([{"example": i, "ref_chosen_logps": 1.0, "ref_rejected_logps": 2.0} for i in (0, 5)])
    for row, side in enumerate([pairs[0].chosen, pairs[5].chosen, pairs[0].rejected, pairs[5].rejected]):
        n, start = len(side.input_ids), pairs[(0, 5)[row % 2]].start
        assert batch["input_ids"][row, :n].tolist() == list(side.input_ids)
        assert batch["completion_mask"][row].nonzero().flatten().tolist() == list(range(start, n))
    assert batch["ref_chosen_logps"].tolist() == [1.0, 1.0] and batch["ref_rejected_logps"].tolist() == [2.0, 2.0]


def test_an_answer_begins_where_it_does_though_prompts_alone_end_otherwise() -> None:
    """A template may write something before an answer to come that it leaves out before one that is there."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\nHere it comes: {% endif %}"
    )
    renderer = Renderer(tokenizer)
    for pair in build_pair_examples(preferences(), renderer, ExampleSettings("Sorry, no"), 0):
        (known,) = [one for one in preferences() if one.id == pair.chosen.id]
        for side, answer in zip(pair.sides, (known.chosen, known.rejected), strict=True):
            assert tokenizer.decode(side.input_ids[pair.start :]).startswith(answer)
            assert side.labels[: pair.start] == (IGNORED,) * pair.start


def test_a_prompt_that_fills_the_length_leaves_no_pair(kit) -> None:
    assert len(pairs_of(kit, 0.25, max_length=24)) < len(preferences())


# ---- the loss --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peft", [False, True], ids=["full", "adapter"])
def test_the_first_loss_is_ln_2_with_the_gate_closed(kit, tmp_path: Path, peft: bool) -> None:
    ran = kit.run(safe_trainer(kit, tmp_path, pairs_of(kit, 1.0), peft=peft, max_steps=1))
    assert logged(ran, "dpo/loss")[0] == pytest.approx(math.log(2), abs=1e-4)
    assert ran.losses[0] == pytest.approx(math.log(2), abs=1e-4)


def test_with_the_gate_open_the_first_loss_is_finite_and_another(kit, tmp_path: Path) -> None:
    ran = kit.run(safe_trainer(kit, tmp_path, pairs_of(kit, 0.0), max_steps=1, beta=0.5))
    assert math.isfinite(ran.losses[0]) and abs(ran.losses[0] - math.log(2)) > 1e-3


@pytest.mark.parametrize("how", [{}, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}])
@pytest.mark.parametrize("peft", [False, True], ids=["full", "adapter"])
def test_lambda_zero_with_the_gate_closed_is_trls_own(kit, tmp_path: Path, peft: bool, how: dict[str, Any]) -> None:
    pairs = pairs_of(kit, 1.0)
    how = {"max_steps": 20 if not how else 5, "learning_rate": 0.2} | how
    plain = kit.run(plain_trainer(kit, tmp_path, pairs, peft, **how))
    safe = kit.run(safe_trainer(kit, tmp_path, pairs, peft=peft, **how))
    assert plain.losses[-1] != pytest.approx(plain.losses[0], abs=1e-3)
    assert safe.losses == pytest.approx(plain.losses, abs=1e-5)
    for name in ("rewards/margins", "logps/chosen", "logps/rejected", "entropy", "logits/chosen"):
        assert logged(safe, name) == pytest.approx(logged(plain, name), abs=1e-3, rel=1e-5), name
    assert logged(safe, "mean_token_accuracy") == pytest.approx(logged(plain, "mean_token_accuracy"))
    for name, weight in plain.weights.items():
        torch.testing.assert_close(safe.weights[name], weight, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("peft", [False, True], ids=["full", "adapter"])
def test_accumulated_equals_one_batch(kit, tmp_path: Path, peft: bool) -> None:
    """The safety loss and the chosen answers' cross-entropy included."""
    objective = SafetyObjective(lambda_cls=0.7, pos_weight=2.0, label_smoothing=0.1)
    shapes = ({"per_device_train_batch_size": b, "gradient_accumulation_steps": a} for b, a in ((1, 8), (8, 1)))
    many, one = (
        kit.run(safe_trainer(kit, tmp_path, pairs_of(kit, 0.25), objective, peft=peft, sft_weight=0.3, **shape))
        for shape in shapes
    )
    assert many.losses == pytest.approx(one.losses, abs=2e-5)
    for found, expected in zip(many.gradients, one.gradients, strict=True):
        assert expected["safety_head.linear.weight"].any() and expected["safety_token.weight"].any()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=2e-5, rtol=1e-4)


def test_checkpointing_changes_no_gradient(kit, tmp_path: Path) -> None:
    pairs = pairs_of(kit, 0.25)
    plain, saving = (
        kit.run(safe_trainer(kit, tmp_path, pairs, SafetyObjective(1.0), peft=True, gradient_checkpointing=saves))
        for saves in (False, True)
    )
    for found, expected in zip(saving.gradients, plain.gradients, strict=True):
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-4)


def test_the_loss_is_the_sum_of_its_parts(kit, tmp_path: Path) -> None:
    trainer = safe_trainer(kit, tmp_path, pairs_of(kit, 0.25), SafetyObjective(0.7), sft_weight=0.3, max_steps=1)
    ran = kit.run(trainer)
    parts = [logged(ran, name)[0] for name in ("dpo/loss", "safety/loss", "dpo/sft_loss")]
    assert ran.losses[0] == pytest.approx(parts[0] + 0.7 * parts[1] + 0.3 * parts[2], abs=1e-5)


def test_the_chosen_answers_alone_are_made_likelier(kit, tmp_path: Path) -> None:
    """μ's gradient knows nothing of the rejected answers: it stays when they are exchanged for others."""
    pairs = pairs_of(kit, 1.0, windows_per_answer=0)
    other = [replace(pair, rejected=replace(pair.rejected, input_ids=pair.chosen.input_ids)) for pair in pairs]
    other = [replace(pair, rejected=replace(pair.chosen, labels=pair.rejected.labels)) for pair in other]
    found = []
    for drawn in (pairs, other):
        trainer = safe_trainer(
            kit, tmp_path, drawn, sft_weight=1.0, beta=1e-9, max_steps=1, per_device_train_batch_size=8
        )
        found.append(kit.run(trainer).gradients[0])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_the_reference_pass_scores_answers_alone_and_agrees_with_trl(kit, tmp_path: Path) -> None:
    pairs = pairs_of(kit, 0.0)
    safe, plain = safe_trainer(kit, tmp_path, pairs), plain_trainer(kit, tmp_path, pairs)
    for column in ("ref_chosen_logps", "ref_rejected_logps"):
        assert safe.train_dataset[column][:] == pytest.approx(plain.train_dataset[column][:], abs=1e-3)


# ---- every loss type -------------------------------------------------------------------------------------------


def test_our_names_are_trls() -> None:
    assert set(PREFERENCE_LOSSES) == set(re.findall(r'loss_type == "(\w+)"', getsource(DPOTrainer)))


@pytest.mark.parametrize("loss", PREFERENCE_LOSSES)
def test_every_loss_type_takes_a_step(kit, tmp_path: Path, loss: str) -> None:
    how = {"loss_type": loss, "label_smoothing": 0.1 if loss in ("exo_pair", "robust") else 0.0, "max_steps": 1}
    ran = kit.run(safe_trainer(kit, tmp_path, pairs_of(kit, 0.25), SafetyObjective(1.0), peft=True, **how))
    assert math.isfinite(ran.losses[0])
    assert any("lora_B" in name and grad.any() for name, grad in ran.gradients[0].items())


def test_a_mixture_of_losses_is_their_weighted_sum(kit, tmp_path: Path) -> None:
    pairs = pairs_of(kit, 1.0)
    first = [
        kit.run(safe_trainer(kit, tmp_path, pairs, max_steps=1, loss_type=types, loss_weights=weights)).losses[0]
        for types, weights in ((["sigmoid"], None), (["hinge"], None), (["sigmoid", "hinge"], [0.5, 2.0]))
    ]
    assert first[2] == pytest.approx(0.5 * first[0] + 2.0 * first[1], abs=1e-5)


# ---- the second stage ------------------------------------------------------------------------------------------


def _after_sft(kit: Any, folder: Path, pairs: Sequence[PairExample]) -> tuple[Any, dict[str, torch.Tensor], Any]:
    sft = kit.safe_trainer(folder, kit.examples(kit.every_pairing()), SafetyObjective(1.0), peft=kit.lora())
    sft.train()
    before = {name: p.detach().clone() for name, p in sft.model.named_parameters()}
    trainer = SafetyDPOTrainer(
        model=sft.model,
        args=dpo_arguments(folder),
        train_dataset=pair_dataset(pairs),
        data_collator=PairCollator(pairs, 0),
        processing_class=tiny_tokenizer(),
        parts=sft.parts,
        objective=SafetyObjective(1.0),
    )
    return trainer, before, sft.parts


@torch.no_grad()
def _logps(model: Any, pair: PairExample, side: Any) -> float:
    """The bare policy's, written out: no safety row, no trainer."""
    ids = torch.tensor([side.input_ids])
    logps = model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    return float(logps[torch.arange(len(ids[0]) - 1), ids[0, 1:]][pair.start - 1 :].sum())


def test_the_second_stage_starts_from_the_first_and_is_measured_against_it(kit, tmp_path: Path) -> None:
    pairs = pairs_of(kit, 1.0)
    trainer, before, _ = _after_sft(kit, tmp_path, pairs)
    now = dict(trainer.model.named_parameters())
    assert any("lora_B" in name and value.any() for name, value in before.items())
    for name, value in before.items():
        assert torch.equal(now[name], value), name
    trainable = [name for name, p in now.items() if p.requires_grad]
    assert trainable and not [name for name in trainable if ".ref." in name or "original_module" in name]
    for side, column in ((0, "ref_chosen_logps"), (1, "ref_rejected_logps")):
        expected = [_logps(trainer.model, pair, pair.sides[side]) for pair in pairs]
        assert trainer.train_dataset[column][:] == pytest.approx(expected, abs=1e-3)
        with trainer.model.disable_adapter():
            bare = [_logps(trainer.model, pair, pair.sides[side]) for pair in pairs]
        assert expected != pytest.approx(bare, abs=1e-2)
    ran = kit.run(trainer)
    assert logged(ran, "dpo/loss")[0] == pytest.approx(math.log(2), abs=1e-4)


def test_the_references_copy_goes_when_it_is_done_with(kit, tmp_path: Path) -> None:
    trainer, _, parts = _after_sft(kit, tmp_path, pairs_of(kit, 0.25))
    trainer.train()
    forget_reference(trainer.model)
    assert list(trainer.model.peft_config) == ["default"]
    assert not [name for name, _ in trainer.model.named_parameters() if ".ref." in name]
    assert parts.head.linear.weight.requires_grad
    forget_reference(tiny_model())  # nothing to forget


def test_evaluation_reports_verdicts_as_in_fine_tuning(kit, tmp_path: Path) -> None:
    pairs = pairs_of(kit, 0.25)
    trainer = safe_trainer(kit, tmp_path, pairs, SafetyObjective(1.0), eval_strategy="no")
    trainer.eval_dataset = trainer.train_dataset
    trainer.categories = {i: pair.chosen.category for i, pair in enumerate(pairs)}
    found = trainer.evaluate()
    assert {"eval_safety/request/auroc", "eval_safety/window/auroc"} <= found.keys()
    names = set().union(*trainer.state.log_history)
    assert {"eval_safety/loss", "eval_dpo/loss", "eval_rewards/margins"} <= names


def test_harmful_answers_are_no_target_of_a_pair(kit) -> None:
    for pair in pairs_of(kit, 0.25):
        trained = [label for label in pair.chosen.labels[pair.start :] if label != IGNORED]
        assert trained == list(pair.chosen.input_ids[pair.start :])
