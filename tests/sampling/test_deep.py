"""Long answers: those of one long generation, ended where they stop being what they are wanted for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from safealign.data.records import BENIGN, MALICIOUS, Message, Record
from safealign.sampling import DEEP, Labeller, Sampler
from safealign.sampling.deep import repeats, write_long

MakeSampler = Callable[..., Sampler]


def _requests(n: int = 6, label: str = MALICIOUS) -> list[Record]:
    return [Record((Message("user", f"do deed {i}"),), label, id=f"deed-{i}", category="made") for i in range(n)]


def _always(indices: Sequence[int], texts: Sequence[str]) -> list[bool]:
    return [True] * len(texts)


@pytest.fixture
def unworried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model goes round in circles: nobody minds here."""
    monkeypatch.setattr("safealign.sampling.deep.repeats", lambda before, text: False)


@pytest.mark.parametrize("stretch", [5, 16, 64])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_stretches_make_the_text_of_one_long_generation(
    sampler: MakeSampler, unworried: None, stretch: int, penalty: float
) -> None:
    one = sampler(deep_max_new_tokens=40, deep_chunk=stretch, deep_repetition_penalty=penalty)
    rendered = [one.renderer.render(record.prompt) for record in _requests()]
    whole = one._writer.write(rendered, 40, repetition_penalty=penalty)
    texts = [one._writer.text(ids) for ids in whole]
    found = write_long(one._writer, rendered, one.settings, _always)
    assert found == [(text.rstrip("\ufffd"), complete) for text, complete in texts], "half a character is none"


def test_it_ends_before_the_stretch_that_fails(sampler: MakeSampler, unworried: None) -> None:
    one = sampler(deep_max_new_tokens=36, deep_chunk=6)
    rendered = [one.renderer.render(record.prompt) for record in _requests(4)]
    whole = write_long(one._writer, rendered, one.settings, _always)
    begun = write_long(one._writer, rendered, replace(one.settings, deep_max_new_tokens=12), _always)
    limits = {0: 0, 1: len(begun[1][0]), 2: 10**6, 3: 10**6}
    asked: list[int] = []

    def accepts(indices: Sequence[int], texts: Sequence[str]) -> list[bool]:
        asked.extend(indices)
        return [len(text) <= limits[index] for index, text in zip(indices, texts, strict=True)]

    found = write_long(one._writer, rendered, one.settings, accepts)
    assert found[0] == ("", False), "nothing of an answer whose first stretch fails"
    assert found[1] == begun[1]
    assert found[2:] == whole[2:]
    assert asked.count(0) == 1, "who has failed is not written on"


def test_deep_answers_keep_their_requests_label(sampler: MakeSampler, unworried: None) -> None:
    one = sampler(deep=4, deep_max_new_tokens=30, deep_chunk=8)
    for label in (MALICIOUS, BENIGN):
        records = one.deep(_requests(6, label), lambda text: False)
        assert records and {(r.label, r.response_label, r.source) for r in records} == {(label, label, DEEP)}
        assert {r.category for r in records} == {"made"} and all((r.id or "").endswith("#deep") for r in records)
        assert len(records) <= 4
    assert len(list(one.folder.iterdir())) == 2, "the same words asked with another label are another job"


def test_a_refusal_in_any_stretch_ends_the_answer_before_it(sampler: MakeSampler, unworried: None) -> None:
    one = sampler(deep=6, deep_max_new_tokens=30, deep_chunk=6)
    longest = max(len(r.response or "") for r in one.deep(_requests(), lambda text: False))
    cut = replace(one.settings, deep_max_new_tokens=29)  # another cache file
    two = Sampler(one.model, one.renderer, cut, one.folder)
    for record in two.deep(_requests(), lambda text: len(text) > longest // 2):
        assert len(record.response or "") <= longest // 2


def test_a_guard_is_asked_after_every_stretch(sampler: MakeSampler, unworried: None) -> None:
    class Short:
        """Finds what is short harmful."""

        def score(self, prompt: str, response: str | None = None) -> float:
            assert prompt.startswith("do deed")
            return float(len(response or "") < 40)

    labeller = Labeller("short", Short)
    one = sampler(deep=6, deep_max_new_tokens=40, deep_chunk=6, labeller=labeller)
    records = one.deep(_requests(), lambda text: False)
    assert records and all(0 < len(r.response or "") < 40 for r in records)
    assert any(not r.complete for r in records)


def test_a_loop_is_told_from_text_that_goes_on() -> None:
    line = "Then take the paper and fold it once more along the middle. "
    other = "After that, the wings are bent upwards so that it flies well in the wind today. "
    assert repeats(line, line + line) and repeats("", line * 4)
    assert not repeats("", line) and not repeats(line, line + other) and not repeats(line, line)
    assert not repeats("", "one two") and not repeats("", "")
