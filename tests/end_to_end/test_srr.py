"""+recipe=srr from records to an export that chooses; what is sampled stays in the cache, and is not sampled again."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

import safealign
from safealign.commands import run_command
from safealign.errors import CheckpointError
from safealign.modeling.manifest import write_manifest
from safealign.ranking.candidates import DECLINING
from safealign.sampling.__main__ import main as sample
from safealign.train import main
from safealign.validate import main as validate

ASKED = [{"role": "user", "content": "How do I fold a paper bird?"}]


@pytest.fixture(scope="module")
def arguments(overrides: list[str]) -> list[str]:
    """The recipe's smoke form on the tests' own records."""
    # What a random model says is neither sure nor sorry: its openings are.
    own = ["+recipe=srr", "ranker.judge=keywords", "data.val_fraction=0.4"]
    return [*own, *[item for item in overrides if not item.startswith("+recipe=")]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of its own."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def run_dir(arguments: list[str], cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("run") / "srr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFEALIGN_CACHE", str(cache))
        assert run_command(main, argv=[*arguments, f"run_dir={folder}"]) == 0
    return folder


@pytest.mark.slow  # reads the packaged data
def test_the_smoke_run_of_the_recipe_has_lists_to_learn_from(tmp_path: Path) -> None:
    assert run_command(main, argv=["+recipe=srr", "debug=smoke", f"run_dir={tmp_path / 'run'}"]) == 0


def test_the_export_chooses(run_dir: Path) -> None:
    model = safealign.load(run_dir / "export")
    assert model.parts is None and model.ranker is not None
    out = model.generate(ASKED, best_of=4, max_new_tokens=6)
    assert out.ranking is not None and out.tokens == out.candidates[out.ranking.best].tokens
    assert len(model.rank(ASKED, ["Yes.", "No."]).scores) == 2
    assert model.generate(ASKED, max_new_tokens=4).p is None  # a bare model beside, decoded as one
    assert not list((run_dir / "export").glob("*.py")) and not list((run_dir / "export").glob("*.bin"))


def test_what_was_found_is_written_down(run_dir: Path) -> None:
    report = json.loads((run_dir / "report" / "ranker.json").read_text(encoding="utf-8"))
    counts = report["candidates"]
    dropped = sum(n for name, n in counts.items() if name.startswith("dropped"))
    assert counts["lists"] + dropped == counts["requests"] and counts["answers"] == 6 * counts["requests"]
    assert set(report["held_out"]) == {"all", "benign", "malicious", "without given openings"}
    assert report["held_out"]["all"]["oracle"] == 1.0
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows and all(row["stage"] == "ranker" and row["loss"] > 0 for row in rows)
    card = (run_dir / "export" / "README.md").read_text(encoding="utf-8")
    assert "2505.15710" in card and "good picks" in card and "best_of=8" in card


def test_sampled_texts_lie_in_the_cache_alone(run_dir: Path, cache: Path) -> None:
    (path,) = (cache / "ranking").iterdir()
    text = path.read_text(encoding="utf-8")
    assert any(opening in text for opening in DECLINING)
    assert stat.S_IMODE((cache / "ranking").stat().st_mode) == 0o700
    said = [json.loads(line)["messages"][-1]["content"] for line in text.splitlines()[:-1]]
    for file in run_dir.rglob("*.*"):
        if file.is_file():
            content = file.read_bytes()
            assert not any(answer.encode() in content for answer in said if len(answer) > 12)


def test_a_second_run_samples_nothing_and_gives_the_same_ranker(
    run_dir: Path,
    arguments: list[str],
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SAFEALIGN_CACHE", str(cache))
    assert run_command(sample, argv=[*arguments, f"run_dir={tmp_path / 'no'}"], record=False) == 0
    assert "sampled:" not in capsys.readouterr().out
    assert run_command(main, argv=[*arguments, f"run_dir={tmp_path / 'run'}"]) == 0
    assert "sampled:" not in capsys.readouterr().out
    one, two = (folder / "export" / "ranker.safetensors" for folder in (run_dir, tmp_path / "run"))
    assert one.read_bytes() == two.read_bytes()


def test_validation_looks_and_does_nothing(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"record": False, "tolerant": True}
    assert run_command(validate, argv=[*arguments, f"run_dir={tmp_path}"], **more) == 0  # type: ignore[arg-type]
    assert "6 answers to each of 24 malicious and 12 benign requests" in " ".join(capsys.readouterr().out.split())
    wrong = ["ranker.heads=3", "ranker.candidates.direct=0", "ranker.candidates.wrapped=0", "data.val_fraction=0"]
    wrong += ["ranker.candidates.declined=0", "ranker.layer=0"]
    assert run_command(validate, argv=[*arguments, f"run_dir={tmp_path}", *wrong], **more) == 2  # type: ignore[arg-type]
    printed = " ".join(capsys.readouterr().out.split())
    assert all(word in printed for word in ("ranker.hidden=16", "fewer than 2 answers", "data.val_fraction=0"))
    assert not list(tmp_path.iterdir())


def test_an_export_with_a_head_keeps_it(
    arguments: list[str], overrides: list[str], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFEALIGN_CACHE", str(cache))
    assert run_command(main, argv=[*overrides, f"run_dir={tmp_path / 'head'}"]) == 0
    first = tmp_path / "head" / "export"
    model = [f"model.path={first}", "model.architecture=null"]
    assert run_command(main, argv=[*arguments, *model, f"run_dir={tmp_path / 'both'}"]) == 0
    before, after = safealign.load(first), safealign.load(tmp_path / "both" / "export")
    assert after.score(ASKED) == before.score(ASKED) and after.thresholds == before.thresholds
    for name in ("srr", "head", "random"):
        assert after.generate(ASKED, best_of=3, ranker=name, max_new_tokens=4).ranking is not None
    text = (tmp_path / "both" / "export" / "README.md").read_text(encoding="utf-8")
    assert "## Ranker" in text and "## Thresholds" in text


@pytest.mark.parametrize("what", ["gone", "torn", "other", "probe", "version", "key"])
def test_a_damaged_ranker_is_refused(run_dir: Path, tmp_path: Path, what: str) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(run_dir / "export", tmp_path / "export")
    weights, card = folder / "ranker.safetensors", folder / "safety.json"
    block = json.loads(card.read_text(encoding="utf-8"))
    if what == "gone":
        weights.unlink()
    elif what == "torn":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif what == "other":
        save_file({name: value + 0.1 for name, value in load_file(weights).items()}, weights)
    elif what == "probe":
        block["ranker"]["probe"][0] += 0.1
    elif what == "version":
        block["ranker"]["version"] = 99
    else:
        del block["ranker"]["settings"]
    card.write_text(json.dumps(block), encoding="utf-8")
    write_manifest(folder)  # as if someone had meant it
    with pytest.raises(CheckpointError, match="ranker"):
        safealign.load(folder)
