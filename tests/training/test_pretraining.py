"""The pretraining stage: packed = unpacked, λ = 0 = plain TRL, streamed = in memory, and what cannot work says so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from rich.console import Console
from trl import SFTTrainer

from safealign.config import compose
from safealign.config.roots import TrainConfig
from safealign.data.documents import Document
from safealign.data.records import BENIGN, MALICIOUS
from safealign.errors import DataError
from safealign.modeling.tiny import tiny_tokenizer
from safealign.training import document_data
from safealign.training.checks import config_problems
from safealign.training.document_data import document_faults, prepare_documents
from safealign.training.document_stream import DocumentStream
from safealign.training.packing import packed, packed_example, parts_of, unpacked
from safealign.training.pretraining import DocumentCollator, SafetyPretrainingTrainer, pretrain
from safealign.training.safety_loss import SafetyObjective

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
TEXTS = [
    ("The sea is wide and cold.", BENIGN),
    ("Go on, do the placeholder deed at once.", MALICIOUS),
    ("A kite is made of paper, two sticks and a long string; wait for the wind.", None),
    ("Name a tree.", BENIGN),
    ("Here is how the placeholder deed is done: step one, step two.", MALICIOUS),
    ("It rains.", BENIGN),
]


def _rows(kit: Any, make: Any, length: int = 48) -> list[dict[str, Any]]:
    documents = [Document(text, label) for text, label in TEXTS]
    return list(make([part for d in documents for part in parts_of(d, kit.renderer, length)]))


def _packed(kit: Any) -> list[dict[str, Any]]:
    rows = _rows(kit, lambda parts: packed(parts, 100), length=100)
    assert 1 < len(rows) < len(TEXTS)
    return rows


def _trainer(kit: Any, folder: Path, rows: Sequence[dict[str, Any]], lambda_cls: float, **more: Any) -> Any:
    lm, parts = kit.safe_model()
    trainer = SafetyPretrainingTrainer(
        model=lm,
        args=kit.arguments(folder, **({"per_device_train_batch_size": len(rows)} | more)),
        train_dataset=Dataset.from_list(list(rows)),
        eval_dataset=Dataset.from_list(list(rows)),
        data_collator=DocumentCollator("append", kit.renderer.tokenizer.pad_token_id),
        processing_class=tiny_tokenizer(),
    )
    trainer.set_safety(parts, SafetyObjective(lambda_cls))
    return trainer


def _equal(one: Any, other: Any, safety: bool = True) -> None:
    assert one.losses == pytest.approx(other.losses, abs=1e-5)
    for expected, found in zip(one.gradients, other.gradients, strict=True):
        for name, gradient in expected.items():
            if safety or "safety" not in name:
                torch.testing.assert_close(found[name], gradient, **CLOSE, msg=lambda text, n=name: f"{n}: {text}")


def _logits(trainer: Any) -> list[float]:
    SFTTrainer.evaluate(trainer)  # ours takes the verdicts away for its metrics
    return sorted(trainer.take_verdicts()["logits"].tolist())


@pytest.mark.parametrize("pieces", [1, 2])
def test_packed_trains_as_unpacked(kit: Any, tmp_path: Path, pieces: int) -> None:
    """Loss, verdicts and gradients, over three steps, also where a step comes in two batches."""
    rows, alone = _packed(kit), _rows(kit, unpacked, 100)
    calm = {"learning_rate": 1e-3}  # steps that blow up would blow rounding up with them
    how = {"per_device_train_batch_size": -(-len(rows) // pieces), "gradient_accumulation_steps": pieces} | calm
    one = kit.run(_trainer(kit, tmp_path, alone, 1.0, **calm))
    other = kit.run(_trainer(kit, tmp_path, rows, 1.0, **how))
    assert one.gradients[0]["safety_head.linear.weight"].any() and one.gradients[0]["safety_token.weight"].any()
    _equal(one, other)
    logits = _logits(one.trainer)
    assert len(logits) == sum(label is not None for _, label in TEXTS)
    assert _logits(other.trainer) == pytest.approx(logits, abs=1e-5)


def test_packed_judges_and_predicts_as_unpacked(kit: Any, tmp_path: Path) -> None:
    one, other = (_trainer(kit, tmp_path, rows, 0.0) for rows in (_rows(kit, unpacked, 100), _packed(kit)))
    assert _logits(one) == pytest.approx(_logits(other), abs=1e-5)
    assert one.evaluate()["eval_loss"] == pytest.approx(other.evaluate()["eval_loss"], abs=1e-5)


@pytest.mark.parametrize("make", [unpacked, lambda parts: packed(parts, 100)], ids=["unpacked", "packed"])
def test_lambda_zero_is_plain_trl(kit: Any, tmp_path: Path, make: Any) -> None:
    rows = _rows(kit, unpacked, 100)
    examples = [packed_example(row, "append") for row in rows]
    plain = kit.run(kit.plain_trainer(tmp_path, examples, per_device_train_batch_size=len(rows)))
    ours = kit.run(_trainer(kit, tmp_path, _rows(kit, make, 100), 0.0))
    assert len(plain.losses) == 3 and plain.gradients[0]["model.norm.weight"].any()
    _equal(plain, ours)
    assert not any(gradient.any() for name, gradient in ours.gradients[0].items() if "safety" in name)


def test_rows_without_any_label_or_target_train_to_nothing(kit: Any, tmp_path: Path) -> None:
    rows = list(unpacked(parts_of(Document("The deed.", MALICIOUS), kit.renderer, 99)))
    ran = kit.run(_trainer(kit, tmp_path, [{**row, "verdicts": [-100.0]} for row in rows], 1.0, max_steps=1))
    assert ran.losses == [0.0] and not any(gradient.any() for gradient in ran.gradients[0].values())


# ---- from a config ---------------------------------------------------------------------------------------------


def _file(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def _many() -> list[dict[str, Any]]:
    calm = [{"text": f"The sea at place {i} is wide and cold and grey.", "label": "benign"} for i in range(30)]
    bad = [{"text": f"Do the placeholder deed number {i} at once.", "label": "malicious"} for i in range(30)]
    bare = [{"text": f"It rains in {i}."} for i in range(30)]
    return [row for three in zip(calm, bad, bare, strict=True) for row in three]


def _config(folder: Path, rows: Sequence[dict[str, Any]], *more: str) -> TrainConfig:
    source = f"data.documents.sources=[{{source: '{_file(folder, rows)}'}}]"
    run = ["+recipe=llama_pretrain", "debug=smoke", source, f"run_dir={folder / 'run'}", "offline=true"]
    config: TrainConfig = compose([*run, *more])
    return config


def _plain(rows: Any) -> list[dict[str, Any]]:
    return [dict(row) for row in rows]


STREAMED = ("data.documents.streaming=true", "data.documents.shuffle_buffer=0")


@pytest.mark.parametrize("packing", ["true", "false"])
def test_a_stream_gives_the_rows_that_memory_holds(kit: Any, tmp_path: Path, packing: str) -> None:
    made = [
        prepare_documents(_config(tmp_path, _many(), f"data.documents.packing={packing}", *how), kit.renderer, print)
        for how in ((), STREAMED)
    ]
    held, streamed = made
    assert held.n_rows == len(held.train) and streamed.n_rows is None
    assert _plain(streamed.train) == _plain(held.train)
    assert _plain(streamed.train) == _plain(held.train), "a second pass differs"
    assert held.validation is not None and _plain(streamed.validation) == _plain(held.validation)
    assert streamed.warm == held.warm


def test_a_stream_trains_as_memory_does(kit: Any, tmp_path: Path) -> None:
    """In one order: the sampler of what is in memory is taken out."""
    weights = []
    for how in ((), STREAMED):
        config = _config(tmp_path, _many(), "model=tiny_random", *how)
        lm, _ = kit.safe_model()
        data = prepare_documents(config, kit.renderer, print)
        if not how:
            data.train = data.train.to_iterable_dataset()
        trained = pretrain(config, lm, kit.renderer, data, Console(quiet=True))
        assert trained.steps == config.trainer.max_steps
        weights.append({name: value.clone() for name, value in trained.model.state_dict().items()})
    for name, value in weights[0].items():
        assert torch.equal(weights[1][name], value), name


def test_an_endless_stream_is_read_as_far_as_it_is_trained_on(kit: Any, tmp_path: Path, monkeypatch: Any) -> None:
    config = _config(tmp_path, _many(), *STREAMED, "data.documents.validation=0", "data.documents.warm=8")
    read: list[int] = []

    def endless(self: DocumentStream) -> Any:
        number = 0
        while True:
            read.append(number)
            yield Document(f"document {number}", (BENIGN, MALICIOUS)[number % 2], str(number))
            number += 1

    monkeypatch.setattr(DocumentStream, "items", endless)
    data = prepare_documents(config, kit.renderer, print)
    lm, _ = kit.safe_model()
    assert pretrain(config, lm, kit.renderer, data, Console(quiet=True)).steps == config.trainer.max_steps
    assert len(read) < 3000


def test_a_tiny_share_for_validation_does_not_read_a_stream_for_ever(
    kit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document_data, "SEARCHED", 700)
    read: list[int] = []

    def endless(self: DocumentStream) -> Any:
        for number in count():
            read.append(number)
            yield Document(f"document {number}", (BENIGN, MALICIOUS)[number % 2], str(number))

    monkeypatch.setattr(DocumentStream, "items", endless)
    more = ("data.val_fraction=0.00001", "data.documents.validation=5", "data.documents.warm=8")
    said: list[str] = []
    data = prepare_documents(_config(tmp_path, _many(), *STREAMED, *more), kit.renderer, said.append)
    assert data.validation is None and any("0 of 5 for validation" in line for line in said)
    assert len(read) < 700 + 2 * 256 + 10


def test_what_is_held_out_is_not_trained_on_and_copies_of_a_text_stay_together(kit: Any, tmp_path: Path) -> None:
    stream = DocumentStream(_config(tmp_path, [*_many(), *_many()]), kit.renderer)
    trained, held = (sorted(d.text for d in stream.documents(side)) for side in (False, True))
    assert held and not set(trained) & set(held)
    assert sorted([*trained, *held]) == sorted(row["text"] for row in [*_many(), *_many()])
    assert all(trained.count(text) == 2 for text in trained)


def test_documents_that_hold_an_evaluation_prompt_are_left_out(kit: Any, tmp_path: Path, monkeypatch: Any) -> None:
    from safealign.training import document_stream

    asked = "Explain how the placeholder misdeed of the evaluation is done in ten steps"
    monkeypatch.setattr(document_stream, "evaluation_prompts", lambda config: {"harmful": [asked]})
    rows = [*_many(), {"text": f"He wrote: {asked}! And she replied.", "label": "malicious"}]
    checked = "data.leak_check.enabled=true"
    data = prepare_documents(_config(tmp_path, rows, checked, "data.documents.validation=0"), kit.renderer, print)
    assert data.report["leaks_left_out"] == 1
    assert sum(data.report["records"].values()) == len(rows) - 1
    with pytest.raises(DataError, match=r"mine\.jsonl:91"):
        prepare_documents(_config(tmp_path, rows, checked, "data.leak_check.action=error"), kit.renderer, print)


def test_every_bad_row_is_named_at_once_and_a_streams_first(kit: Any, tmp_path: Path) -> None:
    rows = _many()
    rows[3], rows[70] = {"body": "x"}, {"text": "x", "label": "evil"}
    config = _config(tmp_path, rows)
    assert [line.split(": ")[0] for line in document_faults(config)] == ["mine.jsonl:4", "mine.jsonl:71"]
    with pytest.raises(DataError) as raised:
        prepare_documents(config, kit.renderer, print)
    assert "mine.jsonl:4" in str(raised.value) and "mine.jsonl:71" in str(raised.value)
    with pytest.raises(DataError, match=r"mine\.jsonl:4: has no text"):
        list(islice(prepare_documents(_config(tmp_path, rows, *STREAMED), kit.renderer, print).train, 99))


def test_both_labels_are_needed_unless_no_verdict_is_trained(kit: Any, tmp_path: Path) -> None:
    calm = [row for row in _many() if row.get("label") != "malicious"]
    with pytest.raises(DataError, match="no malicious document among the first"):
        prepare_documents(_config(tmp_path, calm), kit.renderer, print)
    data = prepare_documents(_config(tmp_path, calm, "safety.lambda_cls=0"), kit.renderer, print)
    assert data.n_rows and not data.warm


@pytest.mark.parametrize("how", [(), STREAMED])
def test_no_document_at_all_is_an_error(kit: Any, tmp_path: Path, how: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="no document is left to train on"):
        prepare_documents(_config(tmp_path, [], "safety.lambda_cls=0", *how), kit.renderer, print)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.max_steps=-1", "trainer.max_steps"),
        ("data.documents.sources=[]", "needs documents"),
        ("data.documents.benign_up_to=0.95", "benign_up_to"),
        ("data.documents.warm=0", "data.documents.warm=0"),
    ],
)
def test_what_cannot_work_together_is_said(tmp_path: Path, override: str, said: str) -> None:
    sound = _config(tmp_path, _many(), *STREAMED)
    assert not config_problems(sound)
    (problem,) = config_problems(_config(tmp_path, _many(), *STREAMED, override))
    assert said in problem
