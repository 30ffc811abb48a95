"""Many clients at once, clients that leave, a full queue, an engine that fails, and the numbers of /metrics."""

from __future__ import annotations

import json
import math
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from servers import CALM, Running, build, serving, until

PROMPTS = ["Hello there", "What is rain?", "Name a tree and its height", "A", "Tell me about the ocean and the north"]
# Answers that end by themselves only after seconds, so that a test decides when they do.
ENDLESS = ["max_new_tokens=1800", "decoding.max_new_tokens=1800", "decoding.min_new_tokens=1800"]


@pytest.fixture
def single() -> Iterator[Running]:
    """One row, one place to wait, endless answers."""
    with serving(build(CALM), "rows=1", "queue=1", *ENDLESS) as running:
        yield running


@contextmanager
def stream(running: Running) -> Iterator[Iterator[str]]:
    """An endless stream whose first text has come."""
    body = {"messages": [{"role": "user", "content": "Hello there"}], "stream": True}
    with httpx.stream("POST", f"{running.url}/v1/chat/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        assert response.status_code == 200 and "assistant" in next(lines)
        until(lambda: running.service.worker.live == 1)
        yield lines


def answer(running: Running, content: str, client: Any = httpx, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    response = client.post(f"{running.url}/v1/chat/completions", json={"messages": messages, **body}, timeout=120)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_two_hundred_requests_at_sixteen_a_time_get_the_texts_they_get_alone() -> None:
    n, max_tokens = 200, 6
    model = build(CALM)
    messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    alone = {
        prompt: model.generate(talk, max_new_tokens=max_tokens, theta_prefix=None).text
        for prompt, talk in zip(PROMPTS, messages, strict=True)
    }
    with serving(model, "rows=8", "queue=8") as running, httpx.Client() as client, ThreadPoolExecutor(16) as pool:
        asked = [PROMPTS[i % len(PROMPTS)] for i in range(n)]
        found = list(pool.map(lambda prompt: answer(running, prompt, client, max_tokens=max_tokens), asked))
        texts = [one["choices"][0]["message"]["content"] for one in found]
        assert texts == [alone[prompt] for prompt in asked]
        ends = [running.metric("safealign_requests_total", outcome=end) for end in ("stop", "length")]
        assert sum(ends) == n == running.metric("safealign_latency_seconds_count")
        tokens = sum(one["usage"]["completion_tokens"] for one in found)
        assert running.metric("safealign_generated_tokens_total") == tokens


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_leaves_frees_its_row(single: Running, streaming: bool) -> None:
    worker = single.service.worker
    if streaming:
        with stream(single):
            pass
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{single.url}/v1/chat/completions",
                json={"messages": [{"role": "user", "content": "Hello there"}]},
                timeout=httpx.Timeout(10, read=0.3),
            )
    until(lambda: worker.live == 0)
    until(lambda: single.metric("safealign_requests_total", outcome="cancelled") == 1)
    until(lambda: single.metric("safealign_generated_tokens_total") > 0)
    assert single.metric("safealign_live_rows") == 0 == single.metric("safealign_latency_seconds_count")
    assert answer(single, "And now?", max_tokens=3)["usage"]["completion_tokens"] <= 3


def test_a_client_that_leaves_the_queue_frees_its_place(single: Running) -> None:
    with stream(single):
        for _ in range(2):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(
                    f"{single.url}/v1/chat/completions",
                    json={"messages": [{"role": "user", "content": "Me too"}], "stream": False},
                    timeout=httpx.Timeout(10, read=0.2),
                )
            until(lambda: single.service.worker.waiting == 0)
        assert single.service.worker.live == 1


def test_a_full_queue_turns_away(single: Running) -> None:
    with stream(single), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(answer, single, "I wait", max_tokens=2)
        until(lambda: single.service.worker.waiting == 1)
        assert single.metric("safealign_queue_length") == 1
        response = single.post()
        assert response.status_code == 503 and int(response.headers["retry-after"]) >= 1
        assert response.json()["error"]["code"] == "queue_full"
        assert httpx.get(f"{single.url}/health").status_code == 200
        worker = single.service.worker
        worker.cancel(next(iter(worker._live.values())))
        assert waiting.result()["choices"]
    assert single.metric("safealign_requests_total", outcome="busy") == 1


def test_an_answer_that_takes_too_long_is_given_up() -> None:
    with serving(build(CALM), "timeout=0.3", "rows=1", *ENDLESS) as running:
        assert running.post().json()["error"]["code"] == "timeout"
        with stream(running) as lines:
            events = [line for line in lines if line]
        assert json.loads(events[-2][6:])["error"]["code"] == "timeout" and events[-1] == "data: [DONE]"
        until(lambda: running.service.worker.live == 0)
        assert running.metric("safealign_requests_total", outcome="timeout") == 2


def test_a_client_that_does_not_read_keeps_nobody_out(single: Running) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "stream": True, "max_tokens": 800}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    single.server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    stuck = socket.socket()
    stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    stuck.connect(("127.0.0.1", int(single.url.rpartition(":")[2])))
    stuck.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
    until(lambda: single.service._open == 1)
    until(lambda: single.service._open == 0)
    assert answer(single, "Hi", max_tokens=2)["choices"]
    stuck.close()


def boom(*args: Any, **options: Any) -> Any:
    raise RuntimeError("out of memory")


def test_when_the_engine_fails_the_server_goes_on(single: Running) -> None:
    worker = single.service.worker
    with stream(single) as lines, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(answer, single, "I wait", max_tokens=2)
        until(lambda: worker.waiting == 1)
        assert worker._session is not None
        worker._session.run.engine.forward = boom  # type: ignore[method-assign]
        events = [line for line in lines if line]
        assert json.loads(events[-2][6:])["error"]["type"] == "server_error"
        assert waiting.result()["choices"]  # it had no row yet, and gets one of the new session
    assert worker.ready and single.metric("safealign_requests_total", outcome="error") == 1
    worker._session.run.engine.forward = boom  # type: ignore[method-assign]
    response = single.post()
    assert response.status_code == 500 and "out of memory" not in response.text
    assert answer(single, "And now?", max_tokens=2)["choices"]


def fail_on(running: Running, content: str) -> None:
    """From now on the present engine cannot feed prompts that say `content`."""
    worker = running.service.worker
    assert worker._session is not None
    engine: Any = worker._session.run.engine
    forward, bad = engine.forward, tuple(running.service.model.tokenizer.encode(content, add_special_tokens=False))

    def faulty(feeds: Any) -> Any:
        for feed in feeds:
            ids = feed.row.prompt.rendered.input_ids
            if any(tuple(ids[i : i + len(bad)]) == bad for i in range(len(ids))):
                raise RuntimeError("out of memory")
        return forward(feeds)

    engine.forward = faulty


def test_a_prompt_that_fails_fails_alone() -> None:
    """Live answers, and those that were to be admitted with it, are what they are without it."""
    model = build(CALM)
    wanted = {
        prompt: model.generate([{"role": "user", "content": prompt}], max_new_tokens=40, theta_prefix=None).text
        for prompt in PROMPTS
    }
    with serving(model, "rows=8", *ENDLESS) as running, ThreadPoolExecutor(8) as pool, stream(running) as lines:
        session = running.service.worker._session
        fail_on(running, "zebra")
        good = [pool.submit(answer, running, prompt, max_tokens=40) for prompt in PROMPTS]
        bad = [pool.submit(running.post, messages=[{"role": "user", "content": "A zebra"}]) for _ in range(2)]
        for response in (future.result() for future in bad):
            assert response.status_code == 500 and "on this prompt" in response.json()["error"]["message"]
            assert "out of memory" not in response.text
        texts = [future.result()["choices"][0]["message"]["content"] for future in good]
        assert texts == [wanted[prompt] for prompt in PROMPTS]
        assert "content" in next(line for line in lines if line) and running.service.worker.live == 1
        assert running.service.worker._session is session
        assert running.metric("safealign_requests_total", outcome="error") == 2
        assert answer(running, "And now?", max_tokens=2)["choices"]


def test_a_request_that_cannot_be_given_a_row_is_answered_and_the_others_go_on(
    single: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = single.service.worker._session
    with monkeypatch.context() as broken:
        broken.setattr(session, "submit", boom)
        response = single.post()
        assert response.status_code == 500 and "out of memory" not in response.text
    assert single.service.worker._session is session and answer(single, "And now?", max_tokens=2)["choices"]


def test_an_answer_whose_states_overflow_fails_alone(single: Running) -> None:
    table = single.service.model.hf.get_input_embeddings().weight
    (z,) = single.service.model.tokenizer.encode("Z")
    wanted, kept = answer(single, "And now?", max_tokens=4), table[z].clone()
    with torch.no_grad():
        table[z] = math.inf
        try:
            assert single.post(messages=[{"role": "user", "content": "A Z"}]).status_code == 500
        finally:
            table[z] = kept
    again = answer(single, "And now?", max_tokens=4)
    assert again["choices"][0]["message"] == wanted["choices"][0]["message"]


def test_without_an_engine_the_server_is_not_ready(single: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = single.service.worker
    assert worker._session is not None
    with monkeypatch.context() as broken:
        broken.setattr(worker, "_open", boom)
        worker._session.run.engine.forward = boom  # type: ignore[method-assign]
        assert single.post().status_code == 500
        assert httpx.get(f"{single.url}/health").status_code == 503
        assert single.post().status_code == 500
    assert answer(single, "And now?", max_tokens=2)["choices"]
    assert httpx.get(f"{single.url}/health").status_code == 200


def test_a_fault_of_the_server_is_logged_without_the_prompt(
    single: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def quoting(conversations: Any) -> Any:
        raise ValueError(f"cannot read {conversations}")

    monkeypatch.setattr(single.service.model, "prompts", quoting)
    assert single.post(messages=[{"role": "user", "content": "my diary"}]).status_code == 500
    assert "ValueError in a request" in caplog.text and "quoting" in caplog.text and "my diary" not in caplog.text


def test_stopping_ends_live_answers(single: Running) -> None:
    with stream(single) as lines:
        single.service.worker.stop()
        events = [line for line in lines if line]
    assert json.loads(events[-2][6:])["error"]["code"] == "shutting_down"
    assert single.post().status_code == 503
    assert httpx.get(f"{single.url}/health").status_code == 503


def test_metrics_can_be_parsed_and_hold_no_text(strict: Running) -> None:
    assert strict.post(messages=[{"role": "user", "content": "zebra"}]).status_code == 200
    strict.post(nothing="zebra")
    response = httpx.get(f"{strict.url}/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    names = {family.name for family in text_string_to_metric_families(response.text)}
    wanted = "requests prompt_tokens generated_tokens refusals interventions latency_seconds queue_length live_rows"
    assert names >= {f"safealign_{name}" for name in [*wanted.split(), "time_to_first_token_seconds"]}
    assert "zebra" not in response.text
    assert strict.metric("safealign_refusals_total") >= 1 <= strict.metric("safealign_interventions_total")
    assert strict.metric("safealign_requests_total", outcome="invalid") >= 1
    assert strict.metric("safealign_prompt_tokens_total") > 0


def test_threads_do_not_pile_up(single: Running) -> None:
    before = threading.active_count()
    for _ in range(3):
        answer(single, "Hi", max_tokens=1)
    assert threading.active_count() <= before + 1  # the one that renders
