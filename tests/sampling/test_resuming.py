"""Killed at any instant and started again: the same records, no portion asked for twice, none lost that was kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safealign.data.records import BENIGN, MALICIOUS, Message, Record
from safealign.decoding import Decoder
from safealign.sampling import Sampler, writer
from safealign.sampling.keeping import Portions

MakeSampler = Callable[..., Sampler]
KINDS = ("everyday", "compliant", "deep")


def _requests(n: int = 9, label: str = MALICIOUS) -> list[Record]:
    return [Record((Message("user", f"do deed {i}"),), label, id=f"deed-{i}") for i in range(n)]


def _run(sampler: Sampler, kind: str) -> list[Record]:
    if kind == "everyday":
        return sampler.everyday(lambda text: True)
    return getattr(sampler, kind)(_requests(), lambda text: False)


@pytest.fixture
def small(sampler: MakeSampler, monkeypatch: pytest.MonkeyPatch) -> MakeSampler:
    """Samplers whose portions are of four prompts each."""
    monkeypatch.setattr(writer, "_PORTION_TOKENS", 1)
    monkeypatch.setattr("safealign.sampling.sampler._MAX_WORDS", 40)
    shape = {"batch_size": 4, "compliant": 9, "everyday": 2, "deep": 9, "deep_max_new_tokens": 24, "deep_chunk": 12}

    def make(folder: Path, **changes: Any) -> Sampler:
        return sampler(folder=folder, **{**shape, **changes})

    return make


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], ...]]:
    """The prompts of every batch that the model really worked on."""
    seen: list[tuple[tuple[int, ...], ...]] = []
    start = Decoder.start

    def watched(self: Decoder, prompts: Any, *rest: Any) -> Any:
        seen.append((tuple(p.rendered.input_ids for p in prompts), tuple(rest[0]), self.options.max_new_tokens))
        return start(self, prompts, *rest)

    monkeypatch.setattr(Decoder, "start", watched)
    return seen


class _Killed(BaseException):
    """Passes through every `except Exception`, as a kill does."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", ["before", "half", "after"])
def test_killed_again_and_again_equals_uninterrupted(
    small: MakeSampler, asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, when: str
) -> None:
    expected = _run(small(tmp_path / "whole"), kind)
    (finished,) = (tmp_path / "whole").iterdir()
    once, lines = list(asked), finished.read_bytes()
    asked.clear()
    put, deaths = Portions.put, 0

    def dying(self: Portions, digest: str, answers: Any) -> None:
        if when != "before":
            put(self, digest, answers)
        if when == "half":
            self.path.write_bytes(self.path.read_bytes()[:-9])
        raise _Killed

    def once_more(self: Portions, digest: str, answers: Any) -> None:
        put(self, digest, answers)
        monkeypatch.setattr(Portions, "put", dying)

    while not list((tmp_path / "cut").glob("*.jsonl")):
        # What dies before its portion is kept gets one portion further each time, or it would never end.
        monkeypatch.setattr(Portions, "put", dying if when == "after" else once_more)
        try:
            found = _run(small(tmp_path / "cut"), kind)
        except _Killed:
            deaths += 1
        assert deaths < 50
    assert deaths >= 2
    assert found == expected != []
    assert [path.name for path in (tmp_path / "cut").iterdir()] == [finished.name]
    assert (tmp_path / "cut" / finished.name).read_bytes() == lines
    assert list(dict.fromkeys(asked)) == once, "the same portions, in the same order"
    if when == "after":
        assert asked == once, "and what was kept is not asked for again"


def test_no_record_comes_twice(small: MakeSampler, tmp_path: Path) -> None:
    for kind in KINDS:
        ids = [record.id for record in _run(small(tmp_path), kind)]
        assert len(ids) == len(set(ids)) > 0


def test_a_portion_for_other_prompts_is_not_taken(small: MakeSampler, asked: list[Any], tmp_path: Path) -> None:
    """A part that an older filter led to must not answer what is asked now."""
    one = small(tmp_path, answers=4)
    requests = _requests(4, BENIGN)
    rendered = [one.renderer.render(record.prompt) for record in requests]
    kept = Portions(tmp_path / "part")
    first = one._writer.write(rendered, 6, kept=kept)
    before = len(asked)
    assert one._writer.write(rendered, 6, kept=Portions(tmp_path / "part")) == first and len(asked) == before
    one._writer.write(rendered[::-1], 6, kept=Portions(tmp_path / "part"))
    one._writer.write(rendered, 7, kept=Portions(tmp_path / "part"))
    one._writer.write(rendered, 6, seed=3, kept=Portions(tmp_path / "part"))
    assert len(asked) == before + 3


def test_portions_are_what_one_batch_would_write(
    sampler: MakeSampler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = sampler(folder=tmp_path / "a", everyday=1)
    at_once = whole.everyday(lambda text: True), whole.compliant(_requests(), lambda text: False)
    monkeypatch.setattr(writer, "_PORTION_TOKENS", 1)
    parts = sampler(folder=tmp_path / "b", everyday=1, batch_size=5)
    assert (parts.everyday(lambda text: True), parts.compliant(_requests(), lambda text: False)) == at_once


_JOB = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from safealign.data.records import MALICIOUS, Message, Record
from safealign.data.rendering import Renderer
from safealign.modeling.tiny import tiny_tokenizer
from safealign.sampling import Sampler, SamplingSettings, writer
from safealign.sampling.keeping import Portions
from tiny_models import talkative_model

writer._PORTION_TOKENS = 1
torch.manual_seed(0)
lives = int(sys.argv[3])
put = Portions.put

def counted(self, *rest):
    global lives
    put(self, *rest)
    lives -= 1
    if not lives:
        os.kill(os.getpid(), signal.SIGKILL)

Portions.put = counted
requests = [Record((Message("user", f"do deed {i}"),), MALICIOUS, id=f"deed-{i}") for i in range(6)]
settings = SamplingSettings(compliant=6, compliant_max_new_tokens=8, batch_size=2)
Sampler(talkative_model(), Renderer(tiny_tokenizer()), settings, Path(sys.argv[2])).compliant(requests, lambda t: False)
"""


@pytest.mark.multiprocess
def test_a_real_kill_leaves_what_the_next_process_goes_on_from(root: Path, tmp_path: Path) -> None:
    def start(folder: str, lives: int) -> int:
        argv = [sys.executable, "-c", _JOB, str(root / "tests"), str(tmp_path / folder), str(lives)]
        return subprocess.run(argv, cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode

    assert start("whole", 0) == 0
    assert start("cut", 2) == -signal.SIGKILL
    assert len((tmp_path / "cut" / next((tmp_path / "cut").glob("*.partial"))).read_bytes().splitlines()) == 2
    assert start("cut", 0) == 0
    (one,), (other,) = ([*(tmp_path / name).glob("*.jsonl")] for name in ("whole", "cut"))
    assert one.read_bytes() == other.read_bytes() and one.name == other.name
    assert not list((tmp_path / "cut").glob("*.partial"))
