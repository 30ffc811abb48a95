"""What the undefended model writes: drawn as said, kept in a cache that is shared, re-read and noticed when torn."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import talkative_model

from safealign.data.records import BENIGN, MALICIOUS, Message, Record
from safealign.data.rendering import Renderer
from safealign.errors import DataError
from safealign.modeling.tiny import tiny_tokenizer
from safealign.sampling import OWN_ANSWER, Sampler, read_cache, spread

MakeSampler = Callable[..., Sampler]


def _anything(text: str) -> bool:
    return True


def _nothing(text: str) -> bool:
    return False


def _requests(n: int = 8) -> list[Record]:
    return [Record((Message("user", f"do deed {i}"),), MALICIOUS, id=f"deed-{i}", category="made") for i in range(n)]


# ---- what is drawn ------------------------------------------------------------------------------------------------


def test_everyday_requests_are_distinct_and_benign_with_the_models_own_answers(sampler: MakeSampler) -> None:
    records = sampler().everyday(_anything)
    assert 0 < len(records) <= 6
    assert len({record.request for record in records}) == len({record.id for record in records}) == len(records)
    answers = sampler().answer([record.prompt for record in records], 6)
    for record, (text, complete) in zip(records, answers, strict=True):
        assert 3 <= len(record.request.split()) <= 60
        assert (record.label, record.response_label, record.source) == (BENIGN, BENIGN, "sampled_everyday")
        assert (record.response, record.complete) == (text, complete)


def test_everyday_requests_pass_the_filter(sampler: MakeSampler) -> None:
    def harmless(text: str) -> bool:
        return "a" not in text

    assert all(harmless(record.request) for record in sampler().everyday(harmless))


def test_a_model_that_never_passes_the_filter_gives_none_and_ends(sampler: MakeSampler) -> None:
    assert sampler(everyday=1).everyday(_nothing) == []


def test_compliant_answers_are_the_models_own_and_malicious(sampler: MakeSampler) -> None:
    records = sampler().compliant(_requests(), _nothing)
    asked = spread(_requests(), 5)
    greedy = sampler().answer([record.prompt for record in asked], 24)
    kept = [(r.id, answer) for r, answer in zip(asked, greedy, strict=True) if len(answer[0].split()) >= 3]
    assert records and [(r.id, (r.response, r.complete)) for r in records] == [(f"{i}#compliant", a) for i, a in kept]
    assert {(r.label, r.response_label, r.category) for r in records} == {(MALICIOUS, MALICIOUS, "made")}


def test_answers_that_refuse_are_left_out(sampler: MakeSampler) -> None:
    assert sampler().compliant(_requests(), _anything) == []


def test_answers_are_those_of_plain_greedy_generation(sampler: MakeSampler, model: Any) -> None:
    drawer = sampler()
    prompts = [(Message("user", text),) for text in ("Hi", "Tell me about the ocean and the wind", "Why")]
    for prompt, (text, complete) in zip(prompts, drawer.answer(prompts, 12), strict=True):
        ids = torch.tensor([drawer.renderer.render(prompt).input_ids])
        end = drawer.renderer.tokenizer.eos_token_id
        out = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=end, pad_token_id=end)
        new = out[0, ids.shape[1] :].tolist()
        assert complete == (end in new)
        assert text == drawer.renderer.tokenizer.decode(new, skip_special_tokens=True)


def test_the_batch_size_changes_nothing(sampler: MakeSampler, tmp_path: Path) -> None:
    drawn = []
    for size in (6, 16):
        made = sampler(batch_size=size, everyday=2)
        made.folder = tmp_path / str(size)
        drawn.append((made.everyday(_anything), made.compliant(_requests(), _nothing)))
    assert drawn[0] == drawn[1]


def test_the_seed_does(sampler: MakeSampler) -> None:
    assert [r.request for r in sampler().everyday(_anything)] != [
        r.request for r in sampler(seed=7).everyday(_anything)
    ]


def test_sampling_leaves_the_callers_random_state_alone(sampler: MakeSampler) -> None:
    """Else a run with a cold cache would train differently from one with a warm one."""
    before = torch.random.get_rng_state()
    sampler().everyday(_anything)
    sampler().compliant(_requests(), _nothing)
    assert torch.equal(torch.random.get_rng_state(), before)


# ---- the cache -----------------------------------------------------------------------------------------------------


def _broken(self: Sampler, *args: Any) -> Any:
    raise AssertionError("the model was asked again")


def test_the_cache_is_read_again_by_any_sampler_of_the_same_model(
    sampler: MakeSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    everyday, compliant = sampler().everyday(_anything), sampler().compliant(_requests(), _nothing)
    monkeypatch.setattr(Sampler, "_generate", _broken)
    for again in (sampler(), sampler(batch_size=3)):
        found = again.everyday(_anything), again.compliant(_requests(), _nothing)
        assert ([_bare(r) for r in found[0]], [_bare(r) for r in found[1]]) == (everyday, compliant)


def _bare(record: Record) -> Record:
    """Without the place in the cache file."""
    assert ".jsonl:" in record.where
    return replace(record, where="")


def _adapted(lm: Any) -> Any:
    """The model with an adapter on it, whose weights are those of no file."""
    adapted = get_peft_model(deepcopy(lm), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    return adapted.get_base_model()


def test_what_changes_the_samples_changes_the_cache_file(sampler: MakeSampler, model: Any, tmp_path: Path) -> None:
    renderer = Renderer(tiny_tokenizer())
    renderer.tokenizer.chat_template += " "
    made = [
        sampler(),
        sampler(compliant=4),
        sampler(compliant_max_new_tokens=20),
        sampler(lm=talkative_model(1)),
        sampler(lm=_adapted(model)),
        sampler(renderer=renderer),
    ]
    for one in made:
        one.compliant(_requests(), _nothing)
    assert len(list(tmp_path.iterdir())) == len(made)
    made[0].compliant(_requests(3), _nothing)
    made[0].everyday(_anything)
    assert len(list(tmp_path.iterdir())) == len(made) + 2
    for change in ({"seed": 1}, {"temperature": 0.5}, {"top_k": 7}, {"everyday": 5}):
        sampler(**change).everyday(_anything)
    assert len(list(tmp_path.iterdir())) == len(made) + 6


def test_what_one_kind_of_text_does_not_depend_on_keeps_it_in_the_cache(sampler: MakeSampler, tmp_path: Path) -> None:
    sampler().compliant(_requests(), _nothing)
    for change in ({"seed": 1}, {"everyday": 5}, {"temperature": 0.5}, {"answers": 3}, {"batch_size": 2}):
        sampler(**change).compliant(_requests(), _nothing)
    assert len(list(tmp_path.iterdir())) == 1


def test_own_answers_are_benign_and_kept_apart_from_compliant_ones(sampler: MakeSampler, tmp_path: Path) -> None:
    benign = [replace(record, label=BENIGN) for record in _requests()]
    records = sampler(answers=4).answers(benign, _nothing)
    assert {(r.label, r.response_label, r.source) for r in records} == {(BENIGN, BENIGN, OWN_ANSWER)}
    assert all(r.id.endswith("#answers") for r in records)
    sampler(answers=4).compliant(benign, _nothing)
    assert len(list(tmp_path.iterdir())) == 2


def test_two_requests_that_end_alike_do_not_share_answers(sampler: MakeSampler) -> None:
    """The answer belongs to the whole conversation, not to its newest turn."""
    alone = (Message("user", "go on"),)
    after = (Message("user", "a tale of the sea"), Message("assistant", "Once there was"), *alone)
    first, second = (
        sampler().compliant([Record(turns, MALICIOUS, id=name)], _nothing)
        for name, turns in (("alone", alone), ("after", after))
    )
    assert [r.id for r in (*first, *second)] == ["alone#compliant", "after#compliant"]


def test_an_interrupted_sampling_leaves_no_file(sampler: MakeSampler, tmp_path: Path) -> None:
    def interrupted(text: str) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler().compliant(_requests(), interrupted)
    assert list(tmp_path.glob("*.jsonl")) == []


@pytest.mark.parametrize("damage", ["half", "last line", "one row", "nothing", "not text"])
def test_a_torn_file_is_noticed_and_named(sampler: MakeSampler, tmp_path: Path, damage: str) -> None:
    sampler().compliant(_requests(), _nothing)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    torn = {
        "half": whole[: len(whole) // 2],
        "last line": b"".join(lines[:-1]),
        "one row": b"".join(lines[1:]),
        "nothing": b"",
        "not text": b"\xff\xfe" + whole,
    }
    path.write_bytes(torn[damage])
    with pytest.raises(DataError, match=path.name):
        sampler().compliant(_requests(), _nothing)


def test_odd_characters_survive_the_cache(sampler: MakeSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that samples bytes writes every kind of line separator sooner or later."""
    odd = "one\u2028two\x85three\x0bfour\x0cfive\x1csix\u2029seven\r\neight\tnine\x00ten"
    monkeypatch.setattr(Sampler, "_generate", lambda self, prompts, *rest: [(odd, True) for _ in prompts])
    written = sampler().compliant(_requests(2), _nothing)
    read = sampler().compliant(_requests(2), _nothing)
    assert [r.response for r in read] == [r.response for r in written] == [odd, odd]


def test_an_empty_result_is_kept_as_such(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text('{"rows": 0}\n')
    assert read_cache(tmp_path / "none.jsonl") == []


# ---- spread --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "expected"), [(0, []), (2, [0, 5]), (5, [0, 2, 4, 6, 8]), (10, list(range(10)))])
def test_spread_takes_evenly_spaced_records(n: int, expected: list[int]) -> None:
    records = _requests(10)
    assert spread(records, n) == [records[i] for i in expected]
    assert spread(records, 99) == records


def test_spread_keeps_every_sources_share() -> None:
    records = [replace(r, source="one" if i < 60 else "other") for i, r in enumerate(_requests(90))]
    sources = [record.source for record in spread(records, 30)]
    assert (sources.count("one"), sources.count("other")) == (20, 10)
