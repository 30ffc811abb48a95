"""The reference's log-probabilities on disk: found again, never mistaken, and made again when they are not whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from rich.console import Console
from safetensors.torch import save_file
from trl import DPOConfig

from safealign.config.composing import compose
from safealign.data.preferences import Preference
from safealign.data.records import BENIGN, MALICIOUS, Message
from safealign.modeling.tiny import tiny_model, tiny_tokenizer
from safealign.training.dpo import SafetyDPOTrainer
from safealign.training.examples import ExampleSettings
from safealign.training.pair_examples import PairCollator, build_pair_examples, pair_dataset
from safealign.training.pair_stage import reference_cache
from safealign.training.reference_cache import ReferenceCache, reference_digest
from safealign.training.safety_loss import SafetyObjective

COLUMNS = {"prompt_ids": [[1, 2], [3]], "chosen_ids": [[4], [5]], "rejected_ids": [[6], [7, 8]]}
LOGPS = {"chosen": torch.tensor([-1.5, -2.25]), "rejected": torch.tensor([-3.0, -0.125])}


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, said: list[str]) -> ReferenceCache:
    return ReferenceCache(tmp_path / "reference", {"template": "t", "max_length": 64}, said.append)


def test_what_was_written_is_read_again(cache: ReferenceCache, said: list[str]) -> None:
    key = cache.key("w", COLUMNS)
    assert cache.read(key, 2) is None
    path = cache.write(key, LOGPS)
    found = cache.read(key, 2)
    assert found is not None and all(torch.equal(found[name], LOGPS[name]) for name in LOGPS)
    assert not said and [file.name for file in path.parent.iterdir()] == [path.name]


CHANGES: list[Callable[[ReferenceCache], str]] = [
    lambda cache: cache.key("other weights", COLUMNS),
    lambda cache: cache.key("w", COLUMNS | {"chosen_ids": [[4], [9]]}),
    lambda cache: cache.key(
        "w", COLUMNS | {"chosen_ids": COLUMNS["rejected_ids"], "rejected_ids": COLUMNS["chosen_ids"]}
    ),
    lambda cache: ReferenceCache(cache.folder, {"template": "u", "max_length": 64}).key("w", COLUMNS),
    lambda cache: ReferenceCache(cache.folder, {"template": "t", "max_length": 65}).key("w", COLUMNS),
]


@pytest.mark.parametrize("change", CHANGES, ids=["weights", "data", "sides", "template", "length"])
def test_a_changed_input_has_another_key(cache: ReferenceCache, change: Callable[[ReferenceCache], str]) -> None:
    assert change(cache) != cache.key("w", COLUMNS)
    assert cache.key("w", COLUMNS) == cache.key("w", COLUMNS)


@given(cut=st.integers(0, 400), data=st.data())
def test_a_torn_or_changed_file_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, cut: int, data: st.DataObject
) -> None:
    said: list[str] = []
    cache = ReferenceCache(tmp_path_factory.mktemp("cache"), {}, said.append)
    key = cache.key("w", COLUMNS)
    path = cache.write(key, LOGPS)
    whole = path.read_bytes()
    if cut < len(whole) and data.draw(st.booleans()):
        path.write_bytes(whole[:cut])
    else:
        at = data.draw(st.integers(len(whole) - 16, len(whole) - 1))  # within the numbers
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert cache.read(key, 2) is None
    assert len(said) == 1 and "computing it again" in said[0]


def test_a_foreign_file_is_noticed(cache: ReferenceCache, said: list[str]) -> None:
    key, other = cache.key("w", COLUMNS), cache.key("x", COLUMNS)
    path = cache.write(key, LOGPS)
    path.rename(path.with_name(f"{other}.safetensors"))
    assert cache.read(other, 2) is None
    save_file(LOGPS, path)
    assert cache.read(key, 2) is None
    cache.write(key, LOGPS)
    assert cache.read(key, 3) is None
    assert len(said) == 3


def test_what_auto_means_here_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache may lie on a disk that a machine with bf16 and one without it share."""
    config = compose(["+recipe=llama_dpo", "trainer.precision=auto"])
    keys = []
    for fast in (False, True):
        monkeypatch.setattr("safealign.modeling.precision.has_fast_bf16", lambda fast=fast: fast)
        keys.append(reference_cache(config, tiny_tokenizer(), Console(quiet=True)).key("w", COLUMNS))
    assert keys[0] != keys[1]


# ---- whose weights ---------------------------------------------------------------------------------------------


def test_any_weight_of_the_reference_counts_and_no_other() -> None:
    torch.manual_seed(0)
    model = tiny_model(layers=2)
    bare = reference_digest(model, None)
    adapted: Any = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.add_adapter("ref", adapted.peft_config["default"])
    fresh, resumed = reference_digest(adapted, None), reference_digest(adapted, "ref")
    names = dict(adapted.named_parameters())
    with torch.no_grad():
        next(value for name, value in names.items() if "lora_A.default" in name).add_(1.0)
        assert (reference_digest(adapted, None), reference_digest(adapted, "ref")) == (fresh, resumed)
        next(value for name, value in names.items() if "lora_A.ref" in name).add_(1.0)
        assert reference_digest(adapted, None) == fresh != reference_digest(adapted, "ref") != resumed
        next(value for name, value in names.items() if "mlp.down_proj" in name)[-1, -1] += 1.0
        assert reference_digest(adapted, None) != fresh
    assert bare != reference_digest(tiny_model(layers=2, seed=1), None)


def test_sharded_weights_are_not_hashed() -> None:
    model = tiny_model(layers=2)
    model.model.norm.weight.data = torch.empty(0)
    assert reference_digest(model, None) is None


# ---- in the trainer --------------------------------------------------------------------------------------------


def _preferences() -> list[Preference]:
    sorts = ((MALICIOUS, "Sorry, no.", "Do the placeholder."), (BENIGN, "It is wide.", "Sorry, no."))
    return [
        Preference((Message("user", f"Tell me {i}"),), chosen, rejected, label, label, id=str(i))
        for i, (label, chosen, rejected) in enumerate(sorts * 2)
    ]


def _trainer(kit: Any, folder: Path, cache: ReferenceCache, monkeypatch: Any, **settings: Any) -> tuple[Any, int]:
    """The trainer, and how many batches of the reference were computed for it."""
    passes = []
    plain = SafetyDPOTrainer.compute_ref_log_probs

    def counted(self: Any, *args: Any) -> Any:
        passes.append(1)
        return plain(self, *args)

    monkeypatch.setattr(SafetyDPOTrainer, "compute_ref_log_probs", counted)
    lm, parts = kit.safe_model()
    pairs = build_pair_examples(_preferences(), kit.renderer, ExampleSettings(kit.trigger, **settings), 0)
    trainer = SafetyDPOTrainer(
        model=lm,
        args=DPOConfig(
            output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", precompute_ref_log_probs=True
        ),
        train_dataset=pair_dataset(pairs),
        data_collator=PairCollator(pairs, 0),
        processing_class=tiny_tokenizer(),
        peft_config=kit.lora(),
        parts=parts,
        objective=SafetyObjective(),
        cache=cache,
    )
    monkeypatch.setattr(SafetyDPOTrainer, "compute_ref_log_probs", plain)
    return trainer, len(passes)


def test_a_second_run_reads_what_the_first_computed(kit, tmp_path: Path, cache, said, monkeypatch) -> None:
    first, computed = _trainer(kit, tmp_path, cache, monkeypatch)
    second, again = _trainer(kit, tmp_path, cache, monkeypatch)
    assert computed > 0 and again == 0 and not said
    for column in ("ref_chosen_logps", "ref_rejected_logps"):
        assert first.train_dataset[column][:] == second.train_dataset[column][:]


def test_another_length_is_computed_and_a_torn_file_again(kit, tmp_path: Path, cache, said, monkeypatch) -> None:
    first, _ = _trainer(kit, tmp_path, cache, monkeypatch)
    assert _trainer(kit, tmp_path, cache, monkeypatch, max_length=26)[1] > 0
    assert not said
    for path in cache.folder.iterdir():
        path.write_bytes(path.read_bytes()[:-3])
    mended, again = _trainer(kit, tmp_path, cache, monkeypatch)
    assert again > 0 and len(said) == 1
    assert first.train_dataset["ref_chosen_logps"][:] == mended.train_dataset["ref_chosen_logps"][:]
    assert _trainer(kit, tmp_path, cache, monkeypatch)[1] == 0
