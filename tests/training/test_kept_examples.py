"""Examples in the cache: the same as rendered ones, made once, and made again as soon as anything differs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from safealign.data.records import LabelledSpan, Message, Record
from safealign.data.rendering import Renderer
from safealign.errors import AssetError, DataError
from safealign.modeling.tiny import tiny_tokenizer
from safealign.training import kept_examples as module
from safealign.training.collator import LENGTH_KEY
from safealign.training.example_key import example_key
from safealign.training.examples import Example, ExampleSettings, build_examples
from safealign.training.kept_examples import Joined, KeptExamples, kept_examples
from safealign.training.packing_examples import pack_examples
from safealign.training.sft import example_dataset

RENDERER = Renderer(tiny_tokenizer())
SETTINGS = ExampleSettings("Sorry, no", windows_per_answer=6, recovery_share=1.0)


def _record(i: int, answer: str | None, **more: Any) -> Record:
    turns = [Message("user", f"Tell me about number {i}"), *([Message("assistant", answer)] if answer else [])]
    return Record(tuple(turns), id=f"r{i}", **more)


RECORDS = [
    _record(0, "It is a very small number, and a round one.", label="benign", response_label="benign"),
    _record(1, "One two three four five six seven.", label="malicious", response_label="malicious", category="sums"),
    _record(2, None, label="malicious", source="sampled_everyday"),
    _record(3, "Calm words. Then other ones follow.", label="benign", spans=(LabelledSpan(12, 35, "malicious"),)),
    _record(4, "Nobody has judged this."),
]
CHANGED: dict[str, Callable[[], tuple[list[Record], Renderer, Any, int]]] = {
    "an answer": lambda: ([replace(RECORDS[0], learn=False), *RECORDS[1:]], RENDERER, SETTINGS, 0),
    "the order": lambda: (RECORDS[::-1], RENDERER, SETTINGS, 0),
    "the length": lambda: (RECORDS, RENDERER, replace(SETTINGS, max_length=40), 0),
    "the seed": lambda: (RECORDS, RENDERER, SETTINGS, 1),
    "the template": lambda: (RECORDS, _other_template(), SETTINGS, 0),
}


def _other_template() -> Renderer:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant", "helper")
    return Renderer(tokenizer)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAFEALIGN_CACHE", str(tmp_path))
    return tmp_path


def _forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("rendered again")

    monkeypatch.setattr(module, "each_example", refuse)


def _get(said: list[str] | None = None) -> Any:
    return kept_examples(RECORDS, RENDERER, SETTINGS, 0, ([] if said is None else said).append)[0]


def test_kept_examples_are_the_rendered_ones(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = build_examples(RECORDS, RENDERER, SETTINGS, 0)
    assert list(_get()) == expected
    _forbid(monkeypatch)
    again = _get()
    assert isinstance(again, KeptExamples) and len(again) == len(expected)
    assert repr(list(again)) == repr(expected)  # by which a checkpoint knows its data
    assert (again[-1], again[1::2]) == (expected[-1], expected[1::2])
    assert Joined(again, expected) == expected * 2 and again != expected[1:]
    assert pack_examples(again, 200, 0) == pack_examples(expected, 200, 0)
    with pytest.raises(IndexError):
        again[len(expected)]


def test_the_trainer_gets_the_same_rows(cache: Path) -> None:
    kept, plain = example_dataset(_get(), 7), example_dataset(build_examples(RECORDS, RENDERER, SETTINGS, 0), 7)
    assert kept.to_dict() == plain.to_dict() and LENGTH_KEY in kept.column_names


@pytest.mark.parametrize("what", CHANGED)
def test_whatever_changes_is_rendered_again(cache: Path, what: str) -> None:
    kept_examples(RECORDS, RENDERER, SETTINGS, 0, print)
    changed = CHANGED[what]()
    assert example_key(*changed) != example_key(RECORDS, RENDERER, SETTINGS, 0)
    found, too_long = kept_examples(*changed, print)
    expected = build_examples(*changed)
    assert list(found) == [example for example in expected if example.id not in too_long]


def test_where_a_record_comes_from_is_no_part_of_it(cache: Path) -> None:
    moved = [replace(record, where="elsewhere.jsonl:3") for record in RECORDS]
    assert example_key(moved, RENDERER, SETTINGS, 0) == example_key(RECORDS, RENDERER, SETTINGS, 0)


def test_a_prompt_that_is_too_long_is_named(cache: Path) -> None:
    long = replace(_record(9, None, label="benign"), messages=(Message("user", "word " * 200),))
    settings = replace(SETTINGS, max_length=100)
    for _ in range(2):
        found, too_long = kept_examples([*RECORDS, long], RENDERER, settings, 0, print)
        assert too_long == ["r9"] and all(example.id != "r9" for example in found)


def _torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [_torn, _flipped, Path.unlink])
@pytest.mark.parametrize("name", ["rows.arrow", "manifest.json"])
def test_what_is_not_whole_is_noticed_and_made_again(cache: Path, name: str, harm: Callable[[Path], None]) -> None:
    expected, said = list(_get()), list[str]()
    harm(next(cache.glob(f"rows/*/{name}")))
    assert list(_get(said)) == expected
    assert len(said) == 1 and "again" in said[0]
    assert list(_get(said)) == expected and len(said) == 1


def test_without_a_cache_they_are_made_in_memory(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise AssetError("the disk is full")

    monkeypatch.setattr(module, "publish", full)
    said: list[str] = []
    assert _get(said) == build_examples(RECORDS, RENDERER, SETTINGS, 0)
    assert len(said) == 1 and "the disk is full" in said[0]


def test_a_faulty_record_leaves_nothing_behind(cache: Path) -> None:
    bad = replace(RECORDS[0], messages=(Message("user", "\ud800"),))
    with pytest.raises(DataError, match="surrogate"):
        kept_examples([*RECORDS, bad], RENDERER, SETTINGS, 0, print)
    assert not list(cache.glob("rows/*"))


def test_one_writes_and_the_others_wait(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[int] = []
    real = module.each_example

    def counted(*arguments: Any) -> Any:
        rendered.append(1)
        return real(*arguments)

    monkeypatch.setattr(module, "each_example", counted)
    found: list[list[Example]] = []
    ranks = [threading.Thread(target=lambda: found.append(list(_get()))) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert len(rendered) == 1
    assert found == [build_examples(RECORDS, RENDERER, SETTINGS, 0)] * 4


def test_no_record_at_all_is_no_error(cache: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        found, too_long = kept_examples([], RENDERER, SETTINGS, 0, said.append)
        assert isinstance(found, KeptExamples)
        assert list(found) == too_long == said == [] and not found


def _open_to_others(folder: Path) -> list[Path]:
    return [path for path in (folder, *folder.iterdir()) if path.stat().st_mode & 0o077]


def test_nobody_else_can_enter_where_they_lie(cache: Path) -> None:
    old = cache / "rows" / "of-an-earlier-version"
    old.mkdir(parents=True)
    old.chmod(0o755)
    old.parent.chmod(0o755)
    _get()
    assert len(list(old.parent.iterdir())) == 2 and not _open_to_others(old.parent)
    old.parent.chmod(0o755)
    _get()
    assert not _open_to_others(old.parent)
