"""Labels by a guard: found once, kept by digest, thresholds applied afresh, a run cut off goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import NEVER, build

from safealign.data.documents import Document
from safealign.data.records import BENIGN, MALICIOUS
from safealign.errors import DataError
from safealign.judges.embedding import STRETCH
from safealign.judges.protocol import Guard
from safealign.training.labelling import ExportGuard, Labeller, LabelStore, scores_of

TEXTS = ("the sea", "the deed", "hard to say", "the sea again")


class Counting:
    """A guard by words, which counts what it reads; only `score`, as the protocol asks."""

    def __init__(self, break_at: int | None = None) -> None:
        self.read: list[str] = []
        self.break_at = break_at

    def score(self, prompt: str, response: str | None = None) -> float:
        if self.break_at == len(self.read):
            raise KeyboardInterrupt
        self.read.append(prompt)
        return 0.97 if "deed" in prompt else 0.6 if "hard" in prompt else 0.02


class Maker:
    """Makes one guard, and counts how often."""

    name = "counting"

    def __init__(self, guard: Counting) -> None:
        self.guard, self.made = guard, 0

    def make(self) -> Counting:
        self.made += 1
        return self.guard


def _labeller(folder: Path, guard: Counting, **how: object) -> Labeller:
    settings: dict[str, object] = {"malicious_from": 0.9, "benign_up_to": 0.5} | how
    return Labeller(Maker(guard), folder=folder, **settings)  # type: ignore[arg-type]


def _documents() -> list[Document]:
    return [Document(text) for text in TEXTS]


def test_the_sure_get_a_label_and_a_label_of_their_own_stays(tmp_path: Path) -> None:
    guard = Counting()
    found = _labeller(tmp_path, guard).label([*_documents(), Document("the deed, told", BENIGN)])
    assert [d.label for d in found] == [BENIGN, MALICIOUS, None, BENIGN, BENIGN]
    assert guard.read == list(TEXTS)


def test_a_second_run_reads_the_store_and_makes_no_guard(tmp_path: Path) -> None:
    first = _labeller(tmp_path, Counting()).label(_documents())
    again = _labeller(tmp_path, Counting())
    assert again.label(_documents()[::-1]) == first[::-1]
    assert again.maker.made == 0
    loose = _labeller(tmp_path, Counting(), malicious_from=0.55, benign_up_to=0.55)
    assert [d.label for d in loose.label(_documents())] == [BENIGN, MALICIOUS, MALICIOUS, BENIGN]


def test_a_run_cut_off_goes_on_where_it_was(tmp_path: Path) -> None:
    broken = _labeller(tmp_path, Counting(break_at=2))
    broken.label(_documents()[:2])
    with pytest.raises(KeyboardInterrupt):
        broken.label(_documents())
    guard = Counting()
    assert [d.label for d in _labeller(tmp_path, guard).label(_documents())] == [BENIGN, MALICIOUS, None, BENIGN]
    assert guard.read == list(TEXTS[2:])


def test_only_cached_judges_nothing(tmp_path: Path) -> None:
    _labeller(tmp_path, Counting()).label(_documents()[:1])
    guard = Counting()
    assert [d.label for d in _labeller(tmp_path, guard, only_cached=True).label(_documents())] == [BENIGN, *[None] * 3]
    assert not guard.read


def test_a_text_that_occurs_twice_is_judged_once(tmp_path: Path) -> None:
    guard = Counting()
    found = _labeller(tmp_path, guard).label([Document("the deed", id="a"), Document("the deed", id="b")])
    assert [(d.id, d.label) for d in found] == [("a", MALICIOUS), ("b", MALICIOUS)]
    assert guard.read == ["the deed"]


def test_the_store_holds_no_text(tmp_path: Path) -> None:
    _labeller(tmp_path, Counting()).label(_documents())
    (path,) = tmp_path.iterdir()
    assert not any(text.encode() in path.read_bytes() for text in TEXTS)


def test_many_digests_are_looked_up(tmp_path: Path) -> None:
    store = LabelStore("many", tmp_path)
    wanted = {f"{i:064x}": i / 2000 for i in range(1200)}
    assert store.look_up(list(wanted)) == {}
    store.keep(wanted)
    assert store.look_up([*wanted, "unknown"]) == wanted


def test_a_damaged_store_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "bad.sqlite").write_bytes(b"no database, " * 200)
    with pytest.raises(DataError, match="delete it"):
        LabelStore("bad", tmp_path).look_up(["a"])


def test_what_is_no_probability_is_refused() -> None:
    class Odd:
        def score(self, prompt: str, response: str | None = None) -> float:
            return float("nan")

    with pytest.raises(DataError, match="probability"):
        scores_of(Odd(), ["x"])


def test_without_a_guard_documents_stay_as_they_are() -> None:
    assert Labeller(None, 0.9, 0.5).label(_documents()) == _documents()


def test_an_export_judges_texts_as_requests_and_long_ones_by_their_worst_stretch() -> None:
    model = build(NEVER)
    guard = ExportGuard(model)
    assert isinstance(guard, Guard)
    one, other = "The sea is wide. " * 20, "Do the deed at once! " * 20
    apart = [model.score([{"role": "user", "content": text}]) for text in (one, other)]
    assert scores_of(guard, [one, other]) == pytest.approx(apart)
    long = one[:1].ljust(STRETCH, "a") + "b" * STRETCH
    halves = [model.score([{"role": "user", "content": long[at : at + STRETCH]}]) for at in (0, STRETCH)]
    assert guard.score(long) == pytest.approx(max(halves))
    assert guard.score_batch([]) == []
