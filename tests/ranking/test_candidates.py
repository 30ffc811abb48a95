"""Candidates: asked in every way, kept behind the plain request, labelled, and counted where they are left out."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import talkative_model

from safealign.data.records import Message, Record
from safealign.data.rendering import Renderer
from safealign.errors import CheckpointError
from safealign.evaluation.attacks import PrefillAttack
from safealign.modeling.feature_cache import FeatureCache
from safealign.modeling.hidden import HiddenExtractor
from safealign.modeling.texts import Text
from safealign.modeling.tiny import tiny_tokenizer
from safealign.ranking import (
    CandidateSettings,
    Ranker,
    RankerSettings,
    StateList,
    candidates,
    load_ranker,
    ranker_block,
    save_ranker,
    unaided,
)
from safealign.ranking.candidates import DECLINING, Way, declined, sample_candidates
from safealign.ranking.labels import by_guard, by_keywords, by_rules
from safealign.ranking.reading import as_list, group, read_states

RENDERER = Renderer(tiny_tokenizer())
SETTINGS = CandidateSettings(max_new_tokens=6, batch_size=5, seed=1)
REQUESTS = [
    Record((Message("user", "Fold a paper bird"),), "benign", id="a", source="mine"),
    Record((Message("user", "Do the placeholder misdeed"),), "malicious", id="b#x", source="mine"),
]
WAYS = [Way("direct", 3, tuple), Way("prefilled", 2, PrefillAttack(3).apply), Way("declined", 1, declined)]


@pytest.fixture(scope="module")
def lm() -> Any:
    return talkative_model()


def _sample(lm: Any, folder: Path, settings: CandidateSettings = SETTINGS, **more: Any) -> list[Record]:
    return sample_candidates(lm, RENDERER, settings, REQUESTS, WAYS, folder=folder, **more)


def _texts(records: list[Record]) -> list[str | None]:
    return [record.response for record in records]


def test_every_answer_stands_behind_the_plain_request(lm: Any, tmp_path: Path) -> None:
    found = _sample(lm, tmp_path)
    names = ["direct-0", "direct-1", "direct-2", "prefilled-0", "prefilled-1", "declined-0"]
    assert [r.id for r in found[:6]] == [f"a#{name}" for name in names]
    assert all(record.prompt == REQUESTS[index // 6].prompt for index, record in enumerate(found))
    assert [record.label for record in found] == ["benign"] * 6 + ["malicious"] * 6
    assert all(record.response.startswith("Sure, here is") for record in found if "prefilled" in record.id)
    assert all(record.response.startswith(DECLINING) for record in found if "declined" in record.id)
    assert len({record.response for record in found}) > 8 and all(record.sampled for record in found)


def test_what_is_cached_is_not_sampled_again_and_what_shapes_it_makes_another(lm: Any, tmp_path: Path) -> None:
    seen: list[int] = []
    first = _sample(lm, tmp_path, progress=seen.append)
    assert sum(seen) == 12
    again = _sample(lm, tmp_path, progress=seen.append)
    assert [record.to_dict() for record in again] == [record.to_dict() for record in first] and sum(seen) == 12
    for change in ({"seed": 2}, {"temperature": 0.5}, {"top_p": 0.5}, {"max_new_tokens": 5}):
        other = CandidateSettings(**{"max_new_tokens": 6, "batch_size": 5, "seed": 1, **change})
        assert _texts(_sample(lm, tmp_path, other)) != _texts(first)
    assert len(list(tmp_path.glob("*.jsonl"))) == 5
    assert _texts(_sample(talkative_model(seed=1), tmp_path)) != _texts(first)


def test_an_adapter_a_late_weight_and_a_tokenizer_have_candidates_of_their_own(
    lm: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keys: list[str] = []
    monkeypatch.setattr(candidates, "cached", lambda folder, key, make, say: keys.append(key) or [])
    _sample(lm, tmp_path)
    _sample(copy.deepcopy(lm), tmp_path)
    assert keys.pop() == keys[0]
    late = copy.deepcopy(lm)
    with torch.no_grad():
        late.model.layers[1].mlp.down_proj.weight[-1, -1] += 1.0
    _sample(late, tmp_path)
    for seed in (0, 1):
        torch.manual_seed(seed)
        lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        _sample(get_peft_model(copy.deepcopy(lm), lora).eval(), tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["paper bird"])
    sample_candidates(lm, Renderer(tokenizer), SETTINGS, REQUESTS, WAYS, folder=tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant", "helper")
    sample_candidates(lm, Renderer(tokenizer), SETTINGS, REQUESTS, WAYS, folder=tmp_path)
    assert len(keys) == len(set(keys)) == 6


def test_a_killed_sampling_goes_on_with_the_same_result(
    lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safealign.sampling.writer._PORTION_TOKENS", 5 * SETTINGS.max_new_tokens)
    whole, seen = _sample(lm, tmp_path / "whole"), []

    def stop(n: int) -> None:
        seen.append(n)
        if sum(seen) > 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _sample(lm, tmp_path / "cut", progress=stop)
    assert list((tmp_path / "cut").glob("*.partial"))
    assert _sample(lm, tmp_path / "cut") == whole
    assert not list((tmp_path / "cut").glob("*.partial"))


def _answer(text: str, label: str = "malicious", way: str = "direct-0", request: str = "r") -> Record:
    turns = (Message("user", "Do it"), Message("assistant", text))
    return Record(turns, label, id=f"{request}#{way}", source="mine+sampled_direct")


HELP = "First take a sheet of paper, then fold it along the middle and press it flat."
REFUSAL = "I'm sorry, but I cannot help with that request because it would hurt people."


def test_labels_by_keywords_are_the_papers() -> None:
    assert by_keywords(_answer("Sorry, no.")) is True and by_keywords(_answer("I am unable to.")) is True
    assert by_keywords(_answer("Sure, take this.")) is False and by_keywords(_answer("Certainly!")) is False
    assert by_keywords(_answer("Measure and ensure it.")) is None and by_keywords(_answer("Here's how.")) is False
    assert by_keywords(_answer("Sure, sorry.")) is None and by_keywords(_answer("Take this.")) is None
    assert by_keywords(_answer("Sorry, no.", "benign")) is False and by_keywords(_answer("Take this.", "benign"))


def test_labels_by_rules_are_the_evaluations() -> None:
    judge = by_rules()
    assert judge(_answer(REFUSAL)) is True and judge(_answer(HELP)) is False
    assert judge(_answer(REFUSAL, "benign")) is False and judge(_answer(HELP, "benign")) is True
    assert judge(_answer("No.")) is None and judge(_answer("la " * 20, "benign")) is None


def test_a_guard_reads_answers_to_malicious_requests() -> None:
    class Guard:
        def score(self, prompt: str, response: str | None = None) -> float:
            return 0.9 if "paper" in (response or "") else 0.1

    judge = by_guard(Guard(), 0.5)
    assert judge(_answer(HELP)) is False and judge(_answer(HELP.replace("paper", "iron"))) is True
    assert judge(_answer(HELP, "benign")) is True and judge(_answer("No.")) is None


def test_repeats_and_lists_without_both_kinds_are_dropped_and_counted() -> None:
    records = [
        _answer(REFUSAL, request="mixed"),
        _answer(HELP, request="mixed"),
        _answer(f"  {HELP}\n", request="mixed"),  # the same words
        _answer("No.", request="mixed"),
        _answer(REFUSAL, request="good"),
        _answer(HELP, request="bad"),
        _answer(HELP, request="bad"),
        _answer("Hm.", request="none"),
    ]
    groups, counts = group(records, by_rules())
    assert [one.request_id for one in groups] == ["mixed"] and groups[0].good == (True, False)
    assert counts == {
        "answers": 8,
        "repeats": 2,
        "requests": 4,
        "unlabelled": 2,
        "lists": 1,
        "dropped: all good": 1,
        "dropped: none good": 1,
        "dropped: no answer left": 1,
    }


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_features_are_read_behind_the_plain_instruction(lm: Any, tmp_path: Path, pool: str) -> None:
    groups, _ = group(_sample(lm, tmp_path), lambda record: "declined" in (record.id or ""))
    extractor = HiddenExtractor(lm, (0.5, 1.0), (pool,))
    cache = FeatureCache(tmp_path / "features")
    states = read_states(groups, extractor, RENDERER, cache=cache)
    done: list[int] = []
    again = read_states(groups, extractor, RENDERER, cache=cache, progress=done.append)
    assert len(groups) == 2 and all(torch.equal(a, b) for a, b in zip(states, again, strict=True))
    for one, found in zip(groups, states, strict=True):
        prompt = RENDERER.render(one.first.prompt)
        wanted = [Text.prompt(prompt)]
        wanted += [Text.answer(prompt, RENDERER.content_ids(r.response or "")) for r in one.answers]
        torch.testing.assert_close(found, torch.cat(extractor.read(wanted)), atol=1e-5, rtol=1e-5)
        made = as_list(one, found, depth=1)
        assert torch.equal(made.instruction, found[0, 0, 1]) and torch.equal(made.answers, found[1:, 0, 1])
        assert made.good.tolist() == list(one.good) and made.id == one.request_id and made.source == "mine"
        ways = [(r.id or "").rpartition("#")[2] for r in one.answers]
        assert any(way.startswith("declined") for way in ways)  # their first words were given; those of the others not
        assert made.unaided == tuple(i for i, way in enumerate(ways) if way.startswith(("direct", "wrapped")))


def test_lists_are_cut_to_answers_without_a_given_opening() -> None:
    rows, good = torch.arange(8.0).reshape(4, 2), torch.tensor([True, False, True, False])
    kept, lost = StateList(rows[0], rows, good, unaided=(1, 2)), StateList(rows[0], rows, good, unaided=(0, 2))
    (part,) = unaided([kept, lost])  # of the other one only good answers would be left
    assert part.answers.tolist() == rows[1:3].tolist() and part.good.tolist() == [False, True]


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_tokenizers_padding_side_changes_no_score(lm: Any, tmp_path: Path, side: str) -> None:
    groups, _ = group(_sample(lm, tmp_path), lambda record: "declined" in (record.id or ""))
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    ranker = Ranker(RankerSettings(hidden=16, heads=2), 32).eval()
    alone = HiddenExtractor(lm, (0.5,), batch_size=1)
    together = HiddenExtractor(lm, (0.5,), batch_size=32)
    for one, mine, theirs in zip(
        groups,
        read_states(groups, together, Renderer(tokenizer)),
        read_states(groups, alone, RENDERER),
        strict=True,
    ):
        scores = ranker.scores(mine.flatten(1))
        assert scores == pytest.approx(ranker.scores(theirs.flatten(1)), abs=1e-5)
        assert len(scores) == len(one.answers)


def test_a_ranker_saved_and_loaded_gives_equal_scores(tmp_path: Path) -> None:
    ranker = Ranker(RankerSettings(hidden=16, heads=2, layer=0.4, kind="pointwise"), 12).eval()
    ranker.standardise(torch.randn(20, 12))
    states, before = torch.randn(5, 12), torch.get_rng_state()
    save_ranker(tmp_path, ranker)
    loaded = load_ranker(tmp_path, ranker_block(ranker, {}, {}))
    assert loaded is not None and loaded.settings == ranker.settings and not loaded.training
    assert loaded.scores(states) == ranker.scores(states)
    assert torch.equal(torch.get_rng_state(), before) and load_ranker(tmp_path, None) is None


@pytest.mark.parametrize("block", [[], "srr", 3, True, {}])
def test_a_block_that_is_no_rankers_is_refused_by_name(tmp_path: Path, block: Any) -> None:
    with pytest.raises(CheckpointError, match=r"safety\.json: its ranker .*: train it again"):
        load_ranker(tmp_path, block)


def test_the_declining_opening_depends_on_the_request_alone() -> None:
    found = {text: declined([Message("user", text)])[-1].content for text in map(str, range(40))}
    assert set(found.values()) == set(DECLINING)
    assert declined([Message("user", "7")])[-1].content == DECLINING[hashlib.sha256(b"7").digest()[0] % len(DECLINING)]
