"""`+recipe=llama_pretrain` on a tiny model and a file of the user's, and fine-tuning that starts from its export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import safealign
from safealign.commands import run_command
from safealign.errors import ConfigError
from safealign.modeling.loading import load_export
from safealign.train import main
from safealign.training import run
from safealign.validate import main as validate

HELLO = [{"role": "user", "content": "Hello there"}]


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The overrides of a job on invented documents of both labels and without one."""
    rows = []
    for i in range(20):
        rows.append({"text": f"The lighthouse at cape {i} is tall; its lamp turns all night.", "label": "benign"})
        rows.append({"text": f"Do the placeholder misdeed number {i}, step by step.", "label": "malicious"})
        rows.append({"text": f"On day {i} it rained, and on the next it did not. " * 9})
    path = tmp_path_factory.mktemp("documents") / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    source = f"data.documents.sources=[{{source: '{path}'}}]"
    return ["+recipe=llama_pretrain", "debug=smoke", "model=tiny_random", source, "offline=true"]


@pytest.fixture(scope="module")
def pretrained(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a finished stage; the head's rate is high, so that it moves."""
    folder = tmp_path_factory.mktemp("run") / "stage"
    more = ["trainer.head_learning_rate=0.01", "safety.lambda_cls=1"]
    assert run_command(main, argv=[*documents, *more, f"run_dir={folder}"]) == 0
    return folder / "export"


def test_the_export_judges_and_says_that_it_has_no_thresholds(pretrained: Path) -> None:
    model = safealign.load(pretrained)
    assert 0.0 < model.score(HELLO) < 1.0
    assert model.generate(HELLO, safety=False, max_new_tokens=2).n_tokens
    assert model.generate(HELLO, theta_query=0.999, theta_window=None, theta_prefix=None, max_new_tokens=2).trace
    with pytest.raises(ConfigError, match="no calibration"):
        model.generate(HELLO, max_new_tokens=2)
    card = json.loads((pretrained / "safety.json").read_text(encoding="utf-8"))
    assert card["thresholds"] == {} and "not calibrated" in card["calibration"]["note"]
    assert card["training"]["stage"] == "pretraining"
    assert sum(card["training"]["records"].values()) > 30
    assert "not calibrated: after pretraining alone" in (pretrained / "README.md").read_text(encoding="utf-8")


def test_no_text_of_a_document_is_written_into_the_run(pretrained: Path) -> None:
    written = [path for path in pretrained.parent.rglob("*") if path.is_file()]
    assert len(written) > 5
    for path in written:
        assert not any(words in path.read_bytes() for words in (b"lighthouse", b"misdeed", b"it rained")), path


def test_fine_tuning_starts_with_its_weights_token_and_head(
    pretrained: Path, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_file(pretrained / "safety.safetensors")
    seen = {}
    build = run.build_trainer

    def watched(config, model, renderer, data, parts, *more):  # type: ignore[no-untyped-def]
        seen["token"], seen["head"] = parts.token.weight.clone(), parts.head.linear.weight.clone()
        seen["mean"], seen["weights"] = parts.head.mean.clone(), model.get_input_embeddings().weight.clone()
        return build(config, model, renderer, data, parts, *more)

    monkeypatch.setattr(run, "build_trainer", watched)
    argv = [*overrides, f"model.path={pretrained}", f"run_dir={tmp_path / 'tuned'}"]
    assert run_command(main, argv=argv) == 0
    assert before["head.linear.weight"][0].any()
    torch.testing.assert_close(seen["token"], before["token.weight"], atol=0, rtol=0)
    torch.testing.assert_close(seen["head"][0], before["head.linear.weight"][0], atol=0, rtol=0)
    torch.testing.assert_close(seen["mean"][0], before["head.mean"][0], atol=0, rtol=0)
    assert seen["head"][1].any() and not before["head.linear.weight"][1].any(), "windows start on answers"
    weights = load_export(pretrained).lm.get_input_embeddings().weight
    assert torch.equal(seen["weights"], weights)
    card = json.loads((tmp_path / "tuned" / "export" / "safety.json").read_text(encoding="utf-8"))
    assert card["thresholds"] and card["training"]["base"] == str(pretrained)


def test_a_head_that_reads_elsewhere_is_refused_before_anything_is_done(
    pretrained: Path, overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*overrides, f"model.path={pretrained}", "safety.head.layers=[1.0]", f"run_dir={tmp_path / 'tuned'}"]
    assert run_command(main, argv=argv) == 2
    assert "carries a head that reads" in capsys.readouterr().err


def test_validate_shows_packed_benign_documents_and_no_other(
    documents: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*documents, f"run_dir={tmp_path / 'none'}"]
    assert run_command(validate, argv=argv, record=False, tolerant=True) == 0
    shown = capsys.readouterr().out
    assert "no problem found" in shown and "estimate:" in shown and "█" in shown and "request" in shown
    assert "misdeed" not in shown and not (tmp_path / "none").exists()


def test_validate_names_every_problem_of_the_stage(
    documents: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine"}\n{"text": 3}\n{"label": "benign"}\n', encoding="utf-8")
    more = [f"data.documents.sources=[{{source: '{path}'}}]", "data.documents.benign_up_to=0.99", "trainer.epoch=2"]
    assert run_command(validate, argv=[*documents, *more], record=False, tolerant=True) == 2
    shown = capsys.readouterr().out
    for expected in ("bad.jsonl:2", "bad.jsonl:3", "benign_up_to", "trainer.epochs"):
        assert expected in shown


def test_a_stream_trains_from_the_command_line_too(documents: list[str], tmp_path: Path) -> None:
    argv = [*documents, "data.documents.streaming=true", "adapter=lora", f"run_dir={tmp_path / 'run'}"]
    assert run_command(main, argv=argv) == 0
    card = json.loads((tmp_path / "run" / "export" / "safety.json").read_text(encoding="utf-8"))
    assert card["training"]["streamed"] is True
    assert safealign.load(tmp_path / "run" / "export").score(HELLO) > 0
