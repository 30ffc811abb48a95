"""The official client talks to the server: whole answers and streams, their shapes, and what `safety` says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from servers import CALM, Running, build, serving

from safealign.decoding import DEFAULT_TRIGGER

HELLO: Any = [{"role": "user", "content": "Hello there"}]
TALKS: list[Any] = [
    HELLO,
    [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "What is rain?"}],
    [{"role": "user", "content": [{"type": "text", "text": "Go on"}]}, {"role": "assistant", "content": "It was"}],
    [{"role": "user", "content": "Tell me about the weather in the north"}],
]


def client(running: Running, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0)


def chunks(text: str) -> list[Any]:
    """The events of a stream; each on one line."""
    lines = [line for line in text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_the_client_gets_a_whole_answer(calm: Running) -> None:
    answer = client(calm).chat.completions.create(model="tiny", messages=HELLO, max_tokens=6)
    wanted = calm.service.model.generate(HELLO, max_new_tokens=6)
    choice = answer.choices[0]
    assert (choice.message.content, choice.message.role) == (wanted.text, "assistant")
    assert choice.finish_reason == wanted.finish_reason
    assert answer.usage is not None and answer.model == "tiny" and answer.id.startswith("chatcmpl-")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (wanted.prompt_tokens, wanted.n_tokens)
    extra: Any = answer.model_extra
    assert extra["safety"] == {"refused": False, "intervened_at": None, "p_malicious": pytest.approx(wanted.p)}


@pytest.mark.parametrize("talk", TALKS)
def test_a_stream_joins_to_the_whole_answer(calm: Running, talk: Any) -> None:
    whole = client(calm).chat.completions.create(model="tiny", messages=talk)
    *parts, last = client(calm).chat.completions.create(
        model="tiny", messages=talk, stream=True, stream_options={"include_usage": True}
    )
    assert parts[0].choices[0].delta.role == "assistant"
    text = "".join(part.choices[0].delta.content or "" for part in parts)
    assert text == whole.choices[0].message.content
    assert parts[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.choices == [] and last.usage == whole.usage
    assert {part.id for part in [*parts, last]} == {last.id}
    assert (parts[-1].model_extra or {})["safety"] == (whole.model_extra or {})["safety"]


def test_without_include_usage_no_chunk_has_any(calm: Running) -> None:
    found = chunks(calm.post(stream=True).text)
    assert all("usage" not in chunk and len(chunk["choices"]) == 1 for chunk in found)


def test_models(calm: Running) -> None:
    assert [model.id for model in client(calm).models.list()] == ["tiny"]
    assert client(calm).models.retrieve("tiny").owned_by == "safealign"
    with pytest.raises(openai.NotFoundError, match="this server has 'tiny'"):
        client(calm).models.retrieve("gpt-9")
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-9'"):
        client(calm).chat.completions.create(model="gpt-9", messages=HELLO)


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_with_the_trigger_is_an_answer_and_says_so(strict: Running, stream: bool) -> None:
    response = strict.post(stream=stream, safety={"trace": True})
    if stream:
        found = chunks(response.text)
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in found)
        finish, safety = found[-1]["choices"][0]["finish_reason"], found[-1]["safety"]
        assert not any("safety" in chunk for chunk in found[:-1])
    else:
        choice = response.json()["choices"][0]
        text, finish, safety = choice["message"]["content"], choice["finish_reason"], response.json()["safety"]
    assert text.startswith(DEFAULT_TRIGGER) and finish in ("stop", "length")
    assert safety["refused"] and safety["intervened_at"] == 0
    assert safety["trace"][0] == {
        "position": 0,
        "kind": "request",
        "span": None,
        "p": pytest.approx(safety["p_malicious"]),
        "state": "refusing",
    }


def test_a_trace_has_every_window(calm: Running) -> None:
    trace = calm.post(safety={"trace": True}).json()["safety"]["trace"]
    wanted = calm.service.model.generate(HELLO, max_new_tokens=8).trace
    assert [(entry["position"], entry["kind"]) for entry in trace] == [(entry.position, entry.kind) for entry in wanted]
    assert [entry["p"] for entry in trace] == pytest.approx([entry.p for entry in wanted], abs=1e-5)
    assert trace[1]["span"] == [1, 1]


def test_a_prefill_is_scanned_and_continued() -> None:
    talk = [*HELLO, {"role": "assistant", "content": "Sure, here is how to"}]
    with serving(build({**CALM, "prefix": -1e3}), "decoding.max_new_tokens=40") as running:
        found = running.post(messages=talk).json()
        assert found["choices"][0]["message"]["content"].startswith("\n\n" + DEFAULT_TRIGGER)
        assert found["safety"]["intervened_at"] == 0


def test_the_fixed_refusal_is_a_content_filter() -> None:
    with serving(build({**CALM, "query": -1e3}), "decoding.dependency=high", "verdicts=none") as running:
        for stream in (False, True):
            text = running.post(stream=stream).text
            assert '"finish_reason":"content_filter"' in text and "I cannot help" in text
            assert "safety" not in text and "p_malicious" not in text
        assert running.post(safety={"trace": True}).status_code == 400


@pytest.fixture(scope="module")
def wavering() -> Iterator[Running]:
    """Interventions in the middle of answers."""
    overrides = ["decoding.schedule=every", "decoding.tau=2", "decoding.max_new_tokens=40"]
    with serving(build({"query": None, "window": 1.0, "prefix": None}, seed=1), *overrides) as running:
        yield running


def test_what_was_shown_is_never_withdrawn(wavering: Running) -> None:
    stepped_in = []
    for talk in TALKS:
        whole = wavering.post(messages=talk).json()
        shown = ""
        with httpx.stream("POST", f"{wavering.url}/v1/chat/completions", json={"messages": talk, "stream": True}) as r:
            for line in r.iter_lines():
                if line.startswith("data: {"):
                    shown += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
                    assert whole["choices"][0]["message"]["content"].startswith(shown)
        assert shown == whole["choices"][0]["message"]["content"]
        stepped_in.append(whole["safety"]["intervened_at"])
    assert any(at for at in stepped_in if at is not None), stepped_in


def test_a_request_may_set_its_own_sampling(calm: Running) -> None:
    def text(**body: Any) -> str:
        return str(calm.post(**body).json()["choices"][0]["message"]["content"])

    warm = {"temperature": 1.5, "max_tokens": 8}
    assert text(seed=5, **warm) == text(seed=5, **warm) != text(seed=6, **warm)
    assert len({text(**warm) for _ in range(4)}) > 1  # a fresh seed each
    assert text() == text(temperature=0) == text(temperature=1e-300) == text(top_k=1, temperature=2)
    assert text(top_p=0, temperature=1) == text(top_p=0.0, temperature=2, min_p=1)
    whole = text()
    assert text(stop=whole[1:3]) == text(stop=["never", whole[1:3]]) == whole[:1]
    assert (
        text(max_tokens=3) == text(max_completion_tokens=3) == calm.service.model.generate(HELLO, max_new_tokens=3).text
    )


def test_fields_that_say_nothing_about_the_text_are_ignored(calm: Running) -> None:
    response = calm.post(
        user="me",
        n=1,
        frequency_penalty=0,
        presence_penalty=0.0,
        logprobs=False,
        tools=[],
        tool_choice="none",
        response_format={"type": "text"},
        metadata={"a": "b"},
        stop=None,
        temperature=None,
    )
    assert response.status_code == 200


def test_an_answer_can_be_sent_back_as_it_came(calm: Running) -> None:
    first = client(calm).chat.completions.create(model="tiny", messages=HELLO).choices[0].message
    again: Any = [*HELLO, first.model_dump(), {"role": "user", "content": "And then?"}]
    assert client(calm).chat.completions.create(model="tiny", messages=again).choices
