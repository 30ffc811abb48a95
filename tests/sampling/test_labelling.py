"""A guard over sampled answers: what it does not find to be what the label says is left out, on both sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from safealign.data.records import BENIGN, MALICIOUS, Message, Record
from safealign.errors import DataError
from safealign.sampling import DISTILLED, Labeller, Sampler

MakeSampler = Callable[..., Sampler]


class Judge:
    """Finds answers harmful by their number of characters; counts how often it is asked."""

    asked = 0

    def __init__(self, p: Callable[[str], float]) -> None:
        self.p = p

    def score(self, prompt: str, response: str | None = None) -> float:
        """As told."""
        type(self).asked += 1
        assert prompt.startswith("do deed") and response is not None
        return self.p(response)


def _requests(label: str, n: int = 8) -> list[Record]:
    return [Record((Message("user", f"do deed {i}"),), label, id=f"deed-{i}") for i in range(n)]


def _nothing(text: str) -> bool:
    return False


def _even(text: str) -> float:
    return float(len(text) % 2 == 0)


@pytest.mark.parametrize("kind", ["compliant", "answers"])
def test_what_the_guard_calls_otherwise_is_left_out(sampler: MakeSampler, kind: str) -> None:
    label = MALICIOUS if kind == "compliant" else BENIGN
    counts = {"compliant": 8, "answers": 8, "answers_max_new_tokens": 24}
    every = getattr(sampler(**counts), kind)(_requests(label), _nothing)
    judged = sampler(**counts, labeller=Labeller("even", lambda: Judge(_even)))
    kept = getattr(judged, kind)(_requests(label), _nothing)
    assert 0 < len(kept) < len(every)
    assert kept == [r for r in every if (_even(r.response or "") == 1.0) == (label == MALICIOUS)]


def test_the_threshold_decides_from_which_p_on(sampler: MakeSampler) -> None:
    def kept(threshold: float) -> int:
        judge = Labeller("third", lambda: Judge(lambda text: 0.3), threshold)
        return len(sampler(labeller=judge).compliant(_requests(MALICIOUS), _nothing))

    assert kept(0.31) == 0 < kept(0.3)


def test_answers_that_passed_one_guard_are_not_taken_for_those_of_another(sampler: MakeSampler) -> None:
    every = Labeller("every", lambda: Judge(lambda text: 1.0))
    judges = [None, every, Labeller("other", every.make), Labeller("every", every.make, 0.9)]
    for judge in judges:
        sampler(labeller=judge).compliant(_requests(MALICIOUS), _nothing)
    assert len(list(sampler().folder.iterdir())) == len(judges)


def test_a_guard_is_not_made_for_what_is_cached(sampler: MakeSampler) -> None:
    def broken() -> Judge:
        raise AssertionError("the guard was made")

    sampler(labeller=Labeller("even", lambda: Judge(_even))).compliant(_requests(MALICIOUS), _nothing)
    again = sampler(labeller=Labeller("even", broken)).compliant(_requests(MALICIOUS), _nothing)
    assert again and all(r.response_label == MALICIOUS for r in again)


@pytest.mark.parametrize("p", [1.5, -0.1, float("nan")])
def test_what_is_no_probability_is_refused(sampler: MakeSampler, p: float) -> None:
    with pytest.raises(DataError, match="Judge must give a probability"):
        sampler(labeller=Labeller("odd", lambda: Judge(lambda text: p))).compliant(_requests(MALICIOUS), _nothing)


def test_distilled_answers_are_benign_and_of_substance(sampler: MakeSampler) -> None:
    records = sampler(distilled=8, distilled_max_new_tokens=24).distilled(_requests(BENIGN), _nothing)
    assert records and {(r.label, r.response_label, r.source) for r in records} == {(BENIGN, BENIGN, DISTILLED)}
    assert all(len((r.response or "").split()) >= 8 for r in records)


class Batches(Judge):
    """The same in batches, whose sizes it notes."""

    def __init__(self, p: Callable[[str], float], sizes: list[int]) -> None:
        super().__init__(p)
        self.sizes = sizes

    def score(self, prompt: str, response: str | None = None) -> float:
        """Never asked."""
        raise AssertionError("one by one")

    def score_answers(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """All at once."""
        assert len(prompts) == len(responses)
        self.sizes.append(len(responses))
        return [self.p(text) for text in responses]


@pytest.mark.parametrize("kind", ["compliant", "deep"])
def test_a_guard_that_takes_batches_is_asked_once_for_all(
    sampler: MakeSampler, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safealign.sampling.deep.repeats", lambda before, text: False)
    counts, sizes = {"compliant": 8, "deep": 8, "deep_max_new_tokens": 24, "deep_chunk": 12}, list[int]()
    one_by_one = sampler(**counts, labeller=Labeller("even", lambda: Judge(_even)))
    expected = getattr(one_by_one, kind)(_requests(MALICIOUS), _nothing)
    batches = sampler(**counts, labeller=Labeller("even in batches", lambda: Batches(_even, sizes)))
    assert getattr(batches, kind)(_requests(MALICIOUS), _nothing) == expected
    assert max(sizes) > 4 and len(sizes) <= 2


def test_nothing_is_asked_of_a_guard_about_nothing() -> None:
    assert Labeller("none", lambda: Judge(_even)).agrees([], [], []) == []
