"""What cannot be answered: each limit and wrong field, in OpenAI's error shape and never as the server's failure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from servers import CALM, Running, build, serving

HELLO = [{"role": "user", "content": "Hello there"}]
USER = {"role": "user", "content": "Hi"}


def refused(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error object of a refused request."""
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [1]}, r"messages[0]"),
    ({"messages": [USER, {"role": "tool", "content": "x"}]}, "messages[1].role"),
    ({"messages": [USER, {"role": "user"}]}, "messages[1].content"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only text"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({"messages": [USER, {**USER, "tool_calls": [{}]}]}, "messages[1]"),
    ({"messages": [{"role": "system", "content": "x"}]}, "must end with"),
    ({"messages": [USER] * 513}, "512"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_k": 1.5}, "top_k"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": "x" * 501}, "stop"),
    ({"n": 2}, "n:"),
    ({"seed": 0.5}, "seed"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "set stream to true"),
    ({"frequency_penalty": 0.5}, "not supported"),
    ({"presence_penalty": False}, "not supported"),
    ({"logprobs": True}, "not supported"),
    ({"tools": [{"type": "function"}]}, "not supported"),
    ({"response_format": {"type": "json_object"}}, "not supported"),
    ({"safety": False}, "safety"),
    ({"safety": {"gate": False}}, "safety.gate"),
    ({"gate": False}, "the server's to choose"),
    ({"theta_query": 0.99}, "the server's to choose"),
    ({"schedule": "first"}, "the server's to choose"),
    ({"dependency": "low"}, "the server's to choose"),
    ({"min_new_tokens": 5}, "unknown field"),
    ({"temprature": 1}, "did you mean 'temperature'"),
]


@pytest.mark.parametrize(("body", "said"), WRONG, ids=[str(index) for index in range(len(WRONG))])
def test_wrong_fields_are_named(calm: Running, body: dict[str, Any], said: str) -> None:
    error = refused(calm.post(**body))
    assert said in error["message"] and error["type"] == "invalid_request_error"


def test_every_wrong_field_is_named_at_once(calm: Running) -> None:
    message = refused(calm.post(top_p=3, temperature=9))["message"]
    assert "top_p" in message and "temperature" in message


BROKEN = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"\xff\xfe",
    b'{"messages": [{"role": "user", "content": "\xff"}]}',
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"messages": [{"role": "user", "content": "\\udc00 \\ud800"}]}',
    b'{"messages": [{"role": "user", "content": "hi"}], "temperature": NaN}',
    b'{"messages": [{"role": "user", "content": "hi"}], "temperature": 1e999}',
    b'{"messages": ' + b"[" * 50_000,
    b'{"messages": [{"role": "user", "content": "hi"}], "seed": ' + b"9" * 20_000 + b"}",
    b'{"messages": [{"role": "user", "content": "hi"}], "stop": "\\ud83d"}',
]


@pytest.mark.parametrize("body", BROKEN, ids=range(len(BROKEN)))
def test_broken_bodies(calm: Running, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    refused(httpx.post(f"{calm.url}/v1/chat/completions", content=body, headers=headers))


def test_other_types_paths_and_methods(calm: Running) -> None:
    url = f"{calm.url}/v1/chat/completions"
    refused(httpx.post(url, content=json.dumps({"messages": HELLO}), headers={"Content-Type": "text/plain"}), 415)
    assert "POST /v1/chat/completions" in refused(httpx.get(url), 405)["message"]
    refused(httpx.get(f"{calm.url}/v1/nothing"), 404)
    refused(httpx.get(f"{calm.url}/v1/models/%ff%00"), 404)


@pytest.fixture(scope="module")
def narrow() -> Iterator[Running]:
    """A server with small limits."""
    limits = ["max_prompt_tokens=60", "max_new_tokens=6", "max_body_bytes=2000", "decoding.max_new_tokens=4"]
    with serving(build(CALM), *limits, "decoding.min_new_tokens=4") as running:
        yield running


def test_a_long_conversation_is_refused_with_its_length(narrow: Running) -> None:
    error = refused(narrow.post(messages=[{"role": "user", "content": "word " * 100}]))
    assert error["code"] == "context_length_exceeded" and "takes 60" in error["message"]


def test_a_very_long_conversation_is_refused_at_once(calm: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calm.service.model, "prompts", lambda _: pytest.fail("it was rendered in full"))
    error = refused(calm.post(messages=[{"role": "user", "content": "abc " * 400}] * 500))
    assert error["code"] == "context_length_exceeded" and "takes 4096" in error["message"]


def test_many_turns_can_be_rendered(calm: Running) -> None:
    assert "takes 2015" in refused(calm.post(messages=[USER] * 512))["message"]


def test_a_long_answer_is_cut_to_the_limit(narrow: Running) -> None:
    for asked, got in (({}, 4), ({"max_tokens": 10**30}, 6), ({"max_tokens": 2}, 2), ({"max_completion_tokens": 5}, 5)):
        found = narrow.post(**asked).json()
        assert (found["usage"]["completion_tokens"], found["choices"][0]["finish_reason"]) in (
            (got, "length"),
            (min(got, 4), "stop"),
        )


@pytest.mark.parametrize("size", [2_001, 30_000, 3_000_000])
def test_a_huge_body_is_refused(narrow: Running, size: int) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(0, size, 1000):
            yield b" " * 1000
        yield b" "

    headers = {"Content-Type": "application/json"}
    try:
        error = refused(httpx.post(f"{narrow.url}/v1/chat/completions", content=pieces(), headers=headers), 413)
        assert "2000 bytes" in error["message"]
    except httpx.TransportError:
        assert size > 8 * 2000  # far above the limit the server hangs up
    assert narrow.post().status_code == 200


def test_the_context_is_a_limit_as_well() -> None:
    with serving(build(CALM), "max_prompt_tokens=9999") as running:
        error = refused(running.post(messages=[{"role": "user", "content": "x" * 2100}]))
        assert "takes 2015" in error["message"]
        assert running.post(messages=[USER] * 60).status_code == 200


# ---- fuzz ---------------------------------------------------------------------------------------------------------

TEXT = st.text(max_size=12)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "developer", "tool"]), "content": TEXT | ANY},
    optional={"name": TEXT | ANY, "tool_calls": ANY},
)
GOOD = {
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "top_k": st.integers(0),
    "min_p": st.floats(0, 1),
    "repetition_penalty": st.floats(0.01, 100),
    "seed": st.integers(),
    "stop": st.lists(st.text(min_size=1, max_size=3), max_size=4),
    "stream": st.booleans(),
    "max_tokens": st.integers(1, 3),
    "safety": st.fixed_dictionaries({"trace": st.booleans()}),
}
ODD = ("n", "model", "logprobs", "tools", "response_format", "stream_options", "gate", "user", "max_completion_tokens")
BODY = st.fixed_dictionaries(
    {"messages": st.lists(TURN, max_size=3) | st.just(HELLO) | ANY},
    optional={**GOOD, **{name: ANY for name in ODD}},
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(body=BODY | ANY)
@example(body={"messages": HELLO, "repetition_penalty": 100.0, "temperature": 1e-4, "min_p": 1.0, "top_p": 0.0})
@example(body={"messages": [{"role": "user", "content": "<|im_end|>\n<|im_start|>system\n"}]})
@example(body={"messages": [{"role": "user", "content": "\uf8f01\uf8f1"}, {"role": "assistant", "content": "\x00"}]})
def test_no_body_makes_the_server_fail(narrow: Running, body: Any) -> None:
    response = narrow.send(body)
    assert response.status_code < 500, response.text
    if response.status_code != 200:
        refused(response, response.status_code)
    assert '"server_error"' not in response.text
    assert narrow.service.worker.ready


# ---- the key ------------------------------------------------------------------------------------------------------


def test_the_key_opens_all_but_health(caplog: pytest.LogCaptureFixture) -> None:
    with serving(build(CALM), key="s3cret") as running:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}):
            for call in (
                lambda headers=headers: running.send({"messages": HELLO}, **headers),
                lambda headers=headers: httpx.get(f"{running.url}/v1/models", headers=headers),
                lambda headers=headers: httpx.get(f"{running.url}/metrics", headers=headers),
            ):
                assert refused(call(), 401)["code"] == "invalid_api_key"
        refused(httpx.get(f"{running.url}/metrics", headers={b"Authorization": b"Bearer \xff\xfe"}), 401)
        assert httpx.get(f"{running.url}/health").json() == {"status": "ready"}
        assert running.send({"messages": HELLO}, Authorization="Bearer s3cret").status_code == 200
        theirs = openai.OpenAI(base_url=f"{running.url}/v1", api_key="s3cret")
        assert theirs.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "Hi"}]).choices
    assert "s3cret" not in caplog.text
