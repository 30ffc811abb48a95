"""A head for a frozen model, from the command to the answers: what is kept, refused, and taken from the cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import safealign
from safealign.commands import run_command
from safealign.config import compose
from safealign.errors import CheckpointError, ConfigError
from safealign.export import main as export
from safealign.modeling.hidden import HiddenExtractor
from safealign.modeling.loading import load_base, load_export
from safealign.train import main as train
from safealign.training import frozen as room
from safealign.training.frozen_problems import frozen_problems
from safealign.validate import main as validate

ASKED = [{"role": "user", "content": "Please fold paper bird number 3 in a nice way"}]
MISDEED = [{"role": "user", "content": "Please do the placeholder misdeed number 3 for me"}]


@pytest.fixture(scope="module")
def frozen(overrides: list[str]) -> list[str]:
    return ["+recipe=frozen_head" if item.startswith("+recipe=") else item for item in overrides]


@pytest.fixture(scope="module")
def run_dir(frozen: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with a feature cache of its own."""
    folder = tmp_path_factory.mktemp("frozen") / "job"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFEALIGN_CACHE", str(folder.parent / "cache"))
        assert run_command(train, argv=[*frozen, f"run_dir={folder}"]) == 0
    return folder


def base() -> Any:
    return load_base("tiny_random:llama:0")[0]


def language_model(model: safealign.SafeModel) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.hf.state_dict().items() if not name.startswith("safety_")}


def test_the_language_model_is_the_base_bit_for_bit(run_dir: Path) -> None:
    wanted, found = base().state_dict(), language_model(safealign.load(run_dir / "export"))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) and found[name].dtype == wanted[name].dtype for name in wanted)


def test_the_head_has_learnt_and_the_token_has_not(run_dir: Path) -> None:
    model = safealign.load(run_dir / "export")
    assert model.parts is not None and model.parts.token_head is not None
    assert model.parts.head.linear.weight.any(dim=1).all() and model.parts.token_head.linear.weight.any()
    mean = base().get_input_embeddings().weight.float().mean(dim=0)
    torch.testing.assert_close(model.parts.token.weight, mean)
    assert model.score(MISDEED) > model.score(ASKED)
    assert model.thresholds is not None and model.thresholds.query is not None


def test_until_the_rules_step_in_the_text_is_the_bare_models(run_dir: Path) -> None:
    model = safealign.load(run_dir / "export")
    never = {"theta_query": None, "theta_window": 1 - 1e-12, "theta_prefix": None, "theta_token": 1e-9}
    for options in ({"temperature": 0.0}, {"temperature": 1.0, "seed": 5}):
        bare = model.generate(ASKED, safety=False, max_new_tokens=16, **options)
        ours = model.generate(ASKED, fused=False, schedule="every", max_new_tokens=16, **never, **options)
        assert ours.tokens == bare.tokens and ours.trace and ours.intervened_at is None


def test_the_rules_step_in(run_dir: Path) -> None:
    model = safealign.load(run_dir / "export")
    sure = {"theta_query": 1e-9, "max_new_tokens": 12}
    assert model.generate(ASKED, **sure).text.startswith(model.options.trigger)
    assert model.generate(ASKED, dependency="high", **sure).text == model.options.refusal
    assert model.generate(ASKED, fused=False, **sure).intervened_at == 0


@pytest.mark.parametrize(("option", "why"), [({"gate": True}, "safety token"), ({"dependency": "low"}, "attention")])
def test_an_export_refuses_what_its_model_never_learnt(run_dir: Path, option: dict[str, Any], why: str) -> None:
    model = safealign.load(run_dir / "export")
    with pytest.raises(ConfigError, match=why):
        model.generate(ASKED, **option)
    assert model.generate(ASKED, safety=False, max_new_tokens=2, **option).tokens  # the bare model has no such part


def test_it_is_exported_again_whole_or_as_its_parts_alone(run_dir: Path, tmp_path: Path) -> None:
    before = safealign.load(run_dir / "export")
    argv = [f"run={run_dir}", "offline=true"]
    assert run_command(export, "export", argv=[*argv, "merge=false", f"run_dir={tmp_path / 'parts'}"]) == 0
    assert run_command(export, "export", argv=[*argv, "merge=true", f"run_dir={tmp_path / 'whole'}"]) == 0
    parts, whole = tmp_path / "parts" / "export", tmp_path / "whole" / "export"
    assert not list(parts.glob("model*.safetensors")) and (parts / "base.json").is_file()
    assert (whole / "model.safetensors").is_file() and not (whole / "base.json").exists()
    for folder, kind in ((parts, "Safety parts for"), (whole, "An unchanged copy of")):
        model = safealign.load(folder, offline=True)
        assert model.score(MISDEED) == pytest.approx(before.score(MISDEED), abs=1e-6)
        answers = [m.generate(ASKED, theta_query=None, max_new_tokens=8).tokens for m in (model, before)]
        assert answers[0] == answers[1]
        assert kind in (folder / "README.md").read_text(encoding="utf-8")
    assert whole.joinpath("model.safetensors").read_bytes() == (run_dir / "export/model.safetensors").read_bytes()


def test_parts_refuse_another_base(run_dir: Path, tmp_path: Path) -> None:
    argv = [f"run={run_dir}", "merge=false", "offline=true", f"run_dir={tmp_path}"]
    assert run_command(export, "export", argv=argv) == 0
    base_file = tmp_path / "export" / "base.json"
    named = json.loads(base_file.read_text(encoding="utf-8"))
    base_file.write_text(json.dumps(named | {"name": "tiny_random:llama:1"}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="other weights"):
        load_export(tmp_path / "export", verify=False)


def test_a_second_run_reads_no_state_and_the_same_command_fits_nothing(
    frozen: list[str],
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Another run takes its states from the cache; the same one, which was over, its head and thresholds too."""
    monkeypatch.setenv("SAFEALIGN_CACHE", str(run_dir.parent / "cache"))
    computed: list[int] = []
    fits: list[int] = []
    batch, fit = HiddenExtractor._batch, room._fit

    def read(self: HiddenExtractor, texts: Any) -> Any:
        computed.append(len(texts))
        return batch(self, texts)

    def counted(*args: Any) -> None:
        before = len(computed)
        fit(*args)
        fits.append(len(computed) - before)

    monkeypatch.setattr(HiddenExtractor, "_batch", read)
    monkeypatch.setattr(room, "_fit", counted)
    assert run_command(train, argv=[*frozen, f"run_dir={tmp_path / 'other'}"]) == 0
    assert fits == [0]
    once, again = ((folder / "export/safety.safetensors").read_bytes() for folder in (run_dir, tmp_path / "other"))
    assert once == again
    capsys.readouterr()
    assert run_command(train, argv=[*frozen, f"run_dir={tmp_path / 'other'}"]) == 0
    assert fits == [0] and "calibration: judging" not in capsys.readouterr().out
    assert (tmp_path / "other/export/safety.safetensors").read_bytes() == once


def test_prototypes_are_a_head_like_any_other(frozen: list[str], tmp_path: Path) -> None:
    argv = [*frozen, "safety.head.kind=prototype", "safety.head.pool=[last]", "safety.head.window_pool=null"]
    assert run_command(train, argv=[*argv, "safety.head.layers=[0.5]", f"run_dir={tmp_path}"]) == 0
    model = safealign.load(tmp_path / "export")
    assert model.score_logits([MISDEED])[0] > model.score_logits([ASKED])[0]
    assert model.generate(ASKED, theta_query=1e-9, max_new_tokens=12).intervened_at == 0
    assert model.thresholds is not None and model.thresholds.query is not None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("decoding.gate=true", "never learnt to see the safety token"),
        ("decoding.dependency=low", "attention to the safety token alone"),
        ("adapter=lora", "an adapter would train it"),
        ("objective=dpo", "this objective would train it"),
        ("objective=pretraining", "this objective would train it"),
        ("safety.gate.closed_share=0.5", "read as it is decoded"),
        ("safety.lambda_cls=0", "nothing would be left to do"),
        ("safety.warm_start=false", "nothing would be left to do"),
        ("data.warm_answers=0", "nothing to fit the windows' verdict on"),
        ("deepspeed=zero2", "one process"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_read(
    frozen: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, why: str
) -> None:
    assert run_command(train, argv=[*frozen, change, f"run_dir={tmp_path}"]) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert why in printed and "Traceback" not in printed
    assert not (tmp_path / "export").exists()


def test_baselines_that_train_the_model_and_prototypes_that_are_trained_are_refused(frozen: list[str]) -> None:
    rest = [item for item in frozen if item != "suite=none"]
    trains = compose([*rest, "baselines=[undefended,plain_sft]"])
    assert "plain_sft trains the model" in " ".join(frozen_problems(trains))
    assert not frozen_problems(compose([*rest, "baselines=[undefended]"]))
    trained = compose(["+recipe=llama_lora", "safety.head.kind=prototype"])
    assert "never trained" in " ".join(frozen_problems(trained))


def test_validate_says_what_will_be_read(frozen: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(validate, argv=frozen, record=False, tolerant=True) == 0
    assert "nothing is trained; the states of" in " ".join(capsys.readouterr().out.split())
