"""SafeModel: load, generate, stream, score; every answer in its own state, clear errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import ALWAYS, HELLO, TALKS, build

import safealign
from safealign.decoding import DEFAULT_TRIGGER
from safealign.errors import CheckpointError, ConfigError, DataError
from safealign.model import SafeModel
from safealign.modeling.exporting import export_model
from safealign.session import Output


def test_generate_answers_and_traces(calm: SafeModel) -> None:
    out = calm.generate(HELLO, schedule="every")
    assert isinstance(out, Output) and out.n_tokens <= 16
    assert not out.refused and out.intervened_at is None
    assert out.p == pytest.approx(calm.score(HELLO), abs=1e-5) == pytest.approx(out.trace[0].p)
    assert [entry.kind for entry in out.trace] == ["request", *["window"] * (len(out.trace) - 1)]
    assert all(entry.to_dict()["cost"]["rows"] == 1 for entry in out.trace)


def test_p_is_the_logit_over_the_temperature(calm: SafeModel) -> None:
    (logit,) = calm.score_logits([HELLO])
    assert calm.score(HELLO) == pytest.approx(float(torch.sigmoid(torch.tensor(logit / 2.0))), abs=1e-6)


def test_medium_inserts_the_trigger_and_high_the_fixed_refusal(strict: SafeModel) -> None:
    medium = strict.generate(HELLO)
    assert medium.text.startswith(DEFAULT_TRIGGER) and medium.refused and medium.intervened_at == 0
    high = strict.generate(HELLO, dependency="high", refusal="That I will not do.")
    assert high.text == "That I will not do." and high.refused and high.finish_reason == "refusal"
    low = strict.generate(HELLO, dependency="low")
    assert not low.text.startswith(DEFAULT_TRIGGER) and low.intervened_at == 0


def test_a_prefix_is_continued_and_not_part_of_the_text(strict: SafeModel, calm: SafeModel) -> None:
    assert strict.generate(TALKS[2]).text.startswith("\n\n" + DEFAULT_TRIGGER)
    out = calm.generate(TALKS[2])
    assert "It was a dark" not in out.text
    assert [entry.kind for entry in out.trace][:2] == ["request", "prefix"]


def test_batch_equals_one_by_one_in_order(calm: SafeModel) -> None:
    done: list[int] = []
    outputs = calm.generate_batch(TALKS, batch_size=2, progress=done.append, schedule="every")
    assert [out.text for out in outputs] == [calm.generate(talk, schedule="every").text for talk in TALKS]
    assert sum(done) == 3
    assert calm.generate_batch([]) == [] == calm.score_batch([])
    assert calm.score_batch(TALKS) == pytest.approx([calm.score(talk) for talk in TALKS], abs=1e-5)


@pytest.mark.parametrize("options", [{}, {"dependency": "high"}, {"theta_window": 0.3, "schedule": "every", "tau": 2}])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_stream_joins_to_the_text(seed: int, options: dict[str, Any]) -> None:
    model = build({"query": None, "window": 1e3, "prefix": None}, seed)
    for talk in TALKS:
        *pieces, last = model.stream(talk, **options)
        assert last.output is not None and last.text == ""
        assert "".join(piece.text for piece in pieces) == last.output.text == model.generate(talk, **options).text


def test_score_ignores_the_answer(calm: SafeModel) -> None:
    answered = [*HELLO, {"role": "assistant", "content": "Something long and quite different"}]
    assert calm.score(answered) == pytest.approx(calm.score(HELLO), abs=1e-5)


def test_seeds_belong_to_rows(calm: SafeModel) -> None:
    one, two = calm.generate_batch([HELLO, HELLO], temperature=1.0, seed=5)
    assert one.text != two.text
    assert calm.generate(HELLO, temperature=1.0, seed=6).text == two.text
    fresh = {calm.generate(HELLO, temperature=1.0, seed=None).text for _ in range(3)}
    assert len(fresh) > 1


def test_recording_never_intervenes() -> None:
    recordings = build(ALWAYS).record_batch(TALKS, schedule="every")
    assert [len(recording.windows) for recording in recordings] == [recording.length for recording in recordings]
    assert recordings[2].prefix and not recordings[0].prefix


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 1.0}, "did you mean 'temperature'"),
        ({"tau": 7}, "tau must be"),
        ({"schedule": "often"}, "schedule must be one of"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_options_are_named(calm: SafeModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        calm.generate_batch([HELLO], **options)


@pytest.mark.parametrize("messages", ["hello", HELLO[0], [], [{"role": "assistant", "content": ""}]])
def test_bad_messages_are_refused(calm: SafeModel, messages: Any) -> None:
    with pytest.raises(DataError):
        calm.generate(messages)


def test_a_stream_checks_its_arguments_at_once(calm: SafeModel) -> None:
    with pytest.raises(ConfigError):
        calm.stream(HELLO, tau=9)


def test_thresholds_must_come_from_somewhere() -> None:
    model = build({})
    with pytest.raises(ConfigError, match="theta_query"):
        model.generate(HELLO)
    assert model.generate(HELLO, theta_query=0.5, theta_window=None, theta_prefix=None).trace


def test_a_bare_model_decodes_and_scores_nothing(calm: SafeModel) -> None:
    bare = SafeModel(calm.hf, calm.tokenizer)
    assert bare.generate(HELLO, max_new_tokens=16).text == calm.generate(HELLO, safety=False).text
    assert bare.generate(HELLO).p is None
    for call in (lambda: bare.score(HELLO), lambda: bare.generate(HELLO, safety=True)):
        with pytest.raises(ConfigError):
            call()


def test_a_model_in_training_decodes_without_dropout_and_trains_on(calm: SafeModel) -> None:
    wanted = calm.generate(HELLO).text
    calm.hf.train()
    assert calm.generate(HELLO).text == wanted
    assert calm.hf.training


def test_exported_and_loaded_is_the_same_model(tmp_path: Path) -> None:
    model = build({"query": 0.3, "window": 0.3, "prefix": None}, schedule="periodic", interval=2)
    assert model.card is not None
    export_model(
        tmp_path / "export", model.hf, model.tokenizer, model.parts, model.card, merge=True, base_name="tiny_random"
    )
    loaded = safealign.load(tmp_path / "export", device="cpu")
    assert loaded.options == model.options and loaded.thresholds == model.thresholds
    assert loaded.score_batch(TALKS) == pytest.approx(model.score_batch(TALKS), abs=1e-6)
    for ours, theirs in zip(loaded.generate_batch(TALKS), model.generate_batch(TALKS), strict=True):
        assert (ours.text, ours.intervened_at, len(ours.trace)) == (
            theirs.text,
            theirs.intervened_at,
            len(theirs.trace),
        )


def test_load_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        safealign.load(tmp_path)
    with pytest.raises(ConfigError, match="dtype"):
        safealign.load(tmp_path, dtype="int3")


@pytest.mark.parametrize(("schedule", "windows"), [("first", False), ("every", True)])
def test_thresholds_are_those_that_something_is_compared_with(calm: SafeModel, schedule: str, windows: bool) -> None:
    shown = calm.generate(HELLO, schedule=schedule).thresholds
    assert shown is not None and (shown["window"] is not None) is windows
    assert shown["query"] is not None and shown["token"] is None
