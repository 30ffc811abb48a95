"""What the model writes itself joins the data as it should, tells nobody, and by default changes nothing."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_models import talkative_model

from safealign.commands import run_command
from safealign.config.composing import compose
from safealign.config.roots import TrainConfig
from safealign.data.records import BENIGN, MALICIOUS, Message, Record
from safealign.data.rendering import Renderer
from safealign.data.splicing import SPLICED, donor
from safealign.errors import ConfigError
from safealign.judges.guards import ProbeGuard, RuleGuard
from safealign.layout import RowKind
from safealign.modeling.tiny import tiny_tokenizer
from safealign.sampling import read_cache
from safealign.sampling.__main__ import main
from safealign.training import self_made
from safealign.training.checks import config_notes
from safealign.training.labellers import labeller
from safealign.training.prepare import TrainingData, arrange, prepare
from safealign.training.self_made import Sampled, apart, family_id, on_side, sample
from safealign.training.sources import load_sources
from safealign.training.splitting import family, split
from safealign.training.viewing import show_example
from safealign.validate import main as validate

WORDS = ("a kite", "a paper hat", "a small boat", "a bird of paper", "a box with a lid", "a star")
ALL_KINDS = (
    "data.sampling.everyday=3",
    "data.sampling.everyday_max_new_tokens=16",
    "data.sampling.compliant=6",
    "data.sampling.compliant_max_new_tokens=24",
    "data.sampling.answers=6",
    "data.sampling.answers_max_new_tokens=24",
    "data.sampling.distilled=6",
    "data.sampling.distilled_max_new_tokens=32",
    "data.sampling.deep=6",
    "data.sampling.deep_max_new_tokens=60",
    "data.sampling.deep_chunk=20",
    "data.sampling.splices=12",
    "data.sampling.benign_splices=6",
)


def _row(i: int, label: str, answer: bool) -> dict[str, Any]:
    deed = "fold" if label == BENIGN else "misuse"
    turns = [{"role": "user", "content": f"Please {deed} {WORDS[i % 6]} number {i} for me"}]
    if answer:
        turns.append({"role": "assistant", "content": f"First take sheet {i}, then {deed} it and press it flat."})
    judged = {"response_label": label} if answer else {}
    return {"messages": turns, "label": label, "id": f"{label}-{i}", **judged}


ROWS = [_row(i, label, i % 3 != 2) for i in range(60) for label in (BENIGN, MALICIOUS)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "mine.jsonl"
    found.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    return found


def _config(path: Path, *more: str) -> TrainConfig:
    return compose([*_overrides(path), *more])


def _overrides(path: Path) -> list[str]:
    plain = ["data.calibration=[]", "data.mix.wrapped=0", "data.leak_check.enabled=false", "offline=true"]
    return ["+recipe=llama_lora", f"data.sources=[{{source: '{path}'}}]", *plain]


def _silent(text: str) -> None:
    pass


def _made(kind: str, name: str, request: str, label: str) -> Record:
    answer = f"It is {request.lower()}, done in three steps and then once more."
    turns = (Message("user", request), Message("assistant", answer))
    return Record(turns, label, label, id=name, source=f"sampled_{kind}", complete=False)


def _asked(i: int, label: str) -> str:
    return str(ROWS[2 * i + (label == MALICIOUS)]["messages"][0]["content"])


def _as_always() -> Sampled:
    """The kinds of the published recipe, by hand."""
    return Sampled(
        everyday=[_made("everyday", f"everyday-{i}", f"Tell me of tree {i}", BENIGN) for i in range(12)],
        compliant=[
            _made("compliant", f"malicious-{i}#compliant", _asked(i, MALICIOUS), MALICIOUS) for i in range(2, 60, 3)
        ],
        answers=[_made("answers", f"benign-{i}#answers", _asked(i, BENIGN), BENIGN) for i in range(2, 60, 3)],
    )


# ---- the published recipe ------------------------------------------------------------------------------------------


def _digest(data: TrainingData) -> str:
    found = hashlib.sha256()
    for part in (data.train, data.validation, data.warm, data.warm_answers):
        for example in part:
            rows = [(row.kind.name, tuple(map(tuple, row.attends)), row.label) for row in example.layout.safety]
            content = (example.id, example.input_ids, example.labels, example.token_labels, rows)
            found.update(repr(content).encode())
    return found.hexdigest()[:16]


# Of what the recipe of the published figures makes of these rows: who changes it has to measure the figures again.
PUBLISHED = "a1e8f05316a8c19e"


def test_the_recipes_own_examples_are_those_of_its_published_figures(path: Path) -> None:
    config = _config(path)
    records = _as_always().joined_to(load_sources(config))
    data = arrange(config, records, Renderer(tiny_tokenizer()), _silent)
    assert (len(data.train), len(data.warm_answers), len(data.calibration)) == (410, 773, 17)
    assert _digest(data) == PUBLISHED


def test_the_recipe_samples_what_it_always_did(path: Path, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the same names, so that what lies in a cache is found again."""
    config = _config(path, "data.sampling.everyday=2", "data.sampling.compliant=2", "data.sampling.answers=2")
    monkeypatch.setattr("safealign.sampling.sampler.ModelIdentity.digest", lambda self: "weights")
    monkeypatch.setattr(self_made, "quick_copy", lambda model: model)
    asked: list[str] = []
    monkeypatch.setattr("safealign.sampling.sampler.cached", lambda folder, key, make, say: asked.append(key) or [])
    sample(config, None, kit.renderer, load_sources(config), _silent)
    assert asked == [
        "everyday-6845d7e0595d2aeebf728eae",
        "compliant-024198361e989ce52964f814",
        "answers-009e8c0963c01928df2ec74a",
    ]


# ---- how it joins the data -----------------------------------------------------------------------------------------


def test_the_models_own_words_replace_an_answer_under_its_id(path: Path) -> None:
    records = load_sources(_config(path))
    own = _made("distilled", "benign-0#distilled", _asked(0, BENIGN), BENIGN)
    long = _made("deep", "benign-1#deep", _asked(1, BENIGN), BENIGN)
    also = _made("distilled", "benign-1#distilled", _asked(1, BENIGN), BENIGN)
    joined = Sampled(distilled=[own, also], deep=[long]).joined_to(records)
    assert [record.id for record in joined] == [record.id for record in records]
    by_id = {record.id: record for record in joined}
    assert by_id["benign-0"].messages == own.messages and by_id["benign-0"].source == "mine+sampled_distilled"
    assert by_id["benign-1"].messages == long.messages and by_id["benign-1"].source == "mine+sampled_deep"
    others = [r for r in joined if r.id not in ("benign-0", "benign-1")]
    assert others == [r for r in records if r.id not in ("benign-0", "benign-1")]


def test_a_long_compliant_answer_takes_the_place_of_the_short_one(path: Path) -> None:
    short = [_made("compliant", f"malicious-{i}#compliant", _asked(i, MALICIOUS), MALICIOUS) for i in (2, 5)]
    long = _made("deep", "malicious-2#deep", _asked(2, MALICIOUS), MALICIOUS)
    joined = Sampled(compliant=short, deep=[long]).joined_to(load_sources(_config(path)))
    assert [r.id for r in joined if "sampled" in (r.source or "")] == ["malicious-5#compliant", "malicious-2#deep"]


def test_long_answers_are_first_asked_of_requests_that_nothing_else_is_asked_of(
    sampled: Callable[..., Sampled],
) -> None:
    found = sampled("data.sampling.deep=10")
    few = sampled("data.sampling.deep=18", "data.sampling.compliant=6")
    assert not {family_id(r) for r in found.compliant} & {family_id(r) for r in found.deep}
    assert not {family_id(r) for r in found.distilled} & {family_id(r) for r in found.deep}
    assert {family_id(r) for r in few.compliant} & {family_id(r) for r in few.deep}, "there are 20 in all"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SAFEALIGN_CACHE", str(folder))
    monkeypatch.setattr("safealign.sampling.deep.repeats", lambda before, text: False)  # a random model's text does
    return folder


@pytest.fixture(scope="module")
def writer() -> Any:
    torch.manual_seed(0)
    return talkative_model()


@pytest.fixture
def sampled(path: Path, cache: Path, writer: Any, kit: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Sampled]:
    monkeypatch.setattr(self_made, "quick_copy", lambda model: model)

    def make(*more: str, **how: Any) -> Sampled:
        config = _config(path, *ALL_KINDS, *more)
        return sample(config, writer, kit.renderer, load_sources(config), how.pop("say", _silent), **how)

    return make


def test_every_kind_is_made_and_read_again(sampled: Callable[..., Sampled], cache: Path) -> None:
    first, told = sampled(), []
    for kind, records in vars(first).items():
        assert records, kind
    assert {r.label for r in first.deep} == {BENIGN, MALICIOUS}
    assert {r.response_label for r in first.splices} == {BENIGN, MALICIOUS}
    again = sampled(only_cached=True, say=told.append)
    assert {k: [r.messages for r in v] for k, v in vars(again).items()} == {
        k: [r.messages for r in v] for k, v in vars(first).items()
    }
    assert not any("none in the cache" in line for line in told)
    assert {path.suffix for path in (cache / "sampled").iterdir()} == {".jsonl"}


def test_what_is_not_cached_is_left_out_and_said(sampled: Callable[..., Sampled], cache: Path) -> None:
    told: list[str] = []
    found = sampled(only_cached=True, say=told.append)
    assert not any(vars(found).values()) and not (cache / "sampled").exists()
    assert sum("python -m safealign.sampling makes them" in line for line in told) == len(told) // 2


def test_spliced_answers_never_cross_a_split(sampled: Callable[..., Sampled], path: Path) -> None:
    config = _config(path, *ALL_KINDS)
    spliced, whole = apart(sampled().joined_to(load_sources(config)))
    assert spliced and all(r.source == SPLICED for r in spliced) and not any(r.source == SPLICED for r in whole)
    sides = split(whole, 0.4, 0)
    chosen = [on_side(spliced, side) for side in sides]
    names = [{family(record) for record in side} for side in sides]
    for some, own, other in ((chosen[0], *names), (chosen[1], *names[::-1])):
        for record in some:
            assert {family(record), donor(record)} <= own and not {family(record), donor(record)} & other
    assert chosen[0] and len(chosen[0]) + len(chosen[1]) < len(spliced)


def test_they_reach_training_and_windows_and_never_the_thresholds(
    sampled: Callable[..., Sampled], path: Path, kit: Any
) -> None:
    config = _config(path, *ALL_KINDS, "data.val_fraction=0", "data.max_length=260")
    records = sampled().joined_to(load_sources(config))
    told: list[str] = []
    data = arrange(config, records, kit.renderer, told.append)
    spliced = {r.id for r in records if r.source == SPLICED}
    assert spliced & {e.id for e in data.train} and spliced & {e.id for e in data.warm_answers}
    assert not any(r.source == SPLICED for r in [*data.calibration, *data.requests])
    deep = {r.id: r for r in records if r.source == "sampled_deep"}
    examples = [e for e in data.warm_answers if e.id in deep]
    assert examples, "windows learn from long answers"
    for example in examples:
        whole = kit.renderer.render(deep[example.id].messages, close=deep[example.id].complete)
        assert example.input_ids == whole.input_ids[:260], "and from all of them"
    assert data.report["self_made"]["sampled_splices/malicious"] > 0
    (line,) = [line for line in told if "written by the undefended model" in line]
    assert "splices/benign" in line and "mine+distilled/benign" in line and "deep/malicious" in line


def test_training_prepares_the_same_after_a_second_sampling(
    sampled: Callable[..., Sampled], path: Path, writer: Any, kit: Any
) -> None:
    config = _config(path, *ALL_KINDS)
    one, two = (prepare(config, writer, kit.renderer, _silent) for _ in range(2))
    assert _digest(one) == _digest(two)


def test_recovery_may_begin_deep_in_an_answer(kit: Any) -> None:
    deed = "Step by step the placeholder deed goes on and on. " * 12
    records = [kit.record(f"deed {i}", deed, MALICIOUS, MALICIOUS, complete=False) for i in range(40)]

    def longest(limit: int) -> int:
        examples = kit.examples(records, recovery_share=1.0, recovery_max_prefix=limit)
        recovered = [e for e in examples if e.id.endswith("#recovery")]
        return max(row.attends[-1].length for e in recovered for row in e.layout.safety if row.kind is RowKind.REFRESH)

    assert longest(40) <= 40 < 100 < longest(200) <= 200


# ---- the guard -----------------------------------------------------------------------------------------------------


def test_the_config_names_the_guard(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = load_sources(_config(path))
    assert labeller(_config(path), records) is None
    rules = labeller(_config(path, "data.sampling.guard=rules", "data.sampling.guard_threshold=0.7"), records)
    assert rules is not None and isinstance(rules.make(), RuleGuard) and rules.threshold == 0.7
    assert rules.make().score(_asked(0, MALICIOUS)) == 1.0 > rules.make().score(_asked(0, BENIGN))

    class Letters:
        """In place of the sentence encoder."""

        def __init__(self, **how: Any) -> None:
            pass

        def encode(self, texts: list[str]) -> torch.Tensor:
            """Whether it speaks of misuse."""
            return torch.tensor([[float("misuse" in text)] for text in texts])

    monkeypatch.setattr("safealign.training.labellers.SentenceEncoder", Letters)
    probe = labeller(_config(path, "data.sampling.guard=probe"), records)
    assert probe is not None and isinstance(probe.make(), ProbeGuard)
    answers = ["Now misuse it and be done.", "Now misuse it and be done.", "Fold it twice."]
    assert probe.agrees([MALICIOUS, BENIGN, BENIGN], ["x"] * 3, answers) == [True, False, True]
    fewer = labeller(_config(path, "data.sampling.guard=probe"), records[:30])
    assert fewer is not None and fewer.key != probe.key != rules.key


def test_the_guard_filters_what_is_sampled(sampled: Callable[..., Sampled], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: Any, prompt: str, response: str | None = None) -> float:
        return 0.0

    monkeypatch.setattr(RuleGuard, "score", never)
    found = sampled("data.sampling.guard=rules")
    assert not found.compliant and found.answers and found.distilled
    assert {r.label for r in found.deep} == {BENIGN}


# ---- nothing leaves the cache --------------------------------------------------------------------------------------


@pytest.fixture
def quiet(cache: Path, writer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty working directory, the talkative model as the one that is loaded, and logs in full."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(self_made, "quick_copy", lambda model: model)
    for name in ("sampling_job", "validating"):
        module = f"safealign.training.{name}.load_model"
        monkeypatch.setattr(module, lambda config: (copy.deepcopy(writer), Renderer(tiny_tokenizer())))
    yield here


def _stretches(cache: Path) -> set[str]:
    """Pieces of everything sampled, long enough not to occur by chance."""
    texts = [r.response or "" for path in (cache / "sampled").glob("*.jsonl") for r in read_cache(path)]
    texts += [r.request for path in (cache / "sampled").glob("everyday*.jsonl") for r in read_cache(path)]
    return {text[at : at + 12] for text in texts for at in range(0, max(1, len(text) - 12), 6) if len(text) >= 12}


def _written(folder: Path) -> str:
    return "\n".join(p.read_text(encoding="utf-8", errors="replace") for p in folder.rglob("*") if p.is_file())


def test_no_sampled_text_is_shown_logged_or_written_outside_the_cache(
    quiet: Path,
    cache: Path,
    path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    argv = [*_overrides(path), *ALL_KINDS, "run_dir=run", "suite=none"]
    assert run_command(main, argv=argv, record=False) == 0
    pieces = _stretches(cache)
    assert len(pieces) > 100
    shown = capfd.readouterr()
    seen = shown.out + shown.err + caplog.text + _written(quiet)
    assert "splices" in shown.out and str(cache.name) in shown.out.replace("\n", "")
    assert not [piece for piece in pieces if piece in seen]
    assert not list(quiet.rglob("*"))
    assert {p.relative_to(cache).parts[0] for p in cache.rglob("*") if p.is_file()} == {"sampled"}


def test_a_damaged_cache_is_named_and_quoted_nowhere(
    quiet: Path, cache: Path, path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = [*_overrides(path), *ALL_KINDS, "run_dir=run"]
    assert run_command(main, argv=argv, record=False) == 0
    pieces = _stretches(cache)
    for file in (cache / "sampled").glob("deep*.jsonl"):
        file.write_bytes(file.read_bytes()[:-5])
    capfd.readouterr()
    assert run_command(main, argv=argv, record=False) == 2
    shown = "".join(capfd.readouterr())
    assert "is torn" in shown and "deep-" in shown
    assert not [piece for piece in pieces if piece in shown]


def test_validate_sums_up_what_is_in_the_cache(
    quiet: Path, path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = [*_overrides(path), *ALL_KINDS, "run_dir=run", "suite=none", "data.warm_answers=8", "data.max_length=48"]
    assert run_command(validate, argv=argv, record=False, tolerant=True) == 0
    assert "none in the cache" in capfd.readouterr().out
    assert run_command(main, argv=argv, record=False) == 0
    capfd.readouterr()
    assert run_command(validate, argv=argv, record=False, tolerant=True) == 0
    shown = " ".join(capfd.readouterr().out.split())
    assert "written by the undefended model:" in shown and "splices/malicious" in shown
    assert "data.sampling.deep asks for answers of 60 tokens, and examples are cut at data.max_length=48" in shown
    assert "none in the cache" not in shown and "█" in shown


def test_an_example_that_is_shown_was_not_sampled(kit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    given = kit.record("Name a tree and a bird", "The oak, and the wren that sits in it all day.")
    for source in ("sampled_everyday", "mine+sampled_deep"):
        mine = kit.record("Name a hill", "The old one.", source=source)
        show_example(kit.examples([given, mine]), kit.renderer, Console())
        assert "example Name a tree and a bird" in " ".join(capsys.readouterr().out.split())
        show_example(kit.examples([mine]), kit.renderer, Console())
        assert "no benign example with windows to show" in capsys.readouterr().out


def test_a_cache_inside_the_run_directory_is_refused(
    sampled: Callable[..., Sampled], cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="must not travel with a run: set SAFEALIGN_CACHE"):
        sampled(f"run_dir={tmp_path}")
    assert not (cache / "sampled").exists()


def test_examples_are_not_kept_inside_the_run_directory(path: Path, cache: Path, tmp_path: Path) -> None:
    config = _config(path, f"run_dir={tmp_path}")
    with pytest.raises(ConfigError, match="must not travel with a run: set SAFEALIGN_CACHE"):
        arrange(config, load_sources(config), Renderer(tiny_tokenizer()), _silent)
    assert not (cache / "rows").exists()


def test_notes_say_what_training_would_not_see(path: Path) -> None:
    def notes(*more: str) -> str:
        return "\n".join(config_notes(_config(path, *more)))

    assert "data.sampling" not in notes()
    assert "data.max_length=160" in notes("data.sampling.deep=10")
    assert "data.max_length" not in notes("data.sampling.deep=10", "data.max_length=400")
    unused = ("data.transitions=0", "data.warm_answers=0")
    assert "both 0" in notes("data.sampling.splices=5", *unused) and "both 0" not in notes(*unused)
