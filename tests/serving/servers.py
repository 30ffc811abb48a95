"""A tiny model behind a real server on a free port of this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import torch
from fastapi import FastAPI

from safealign.config import compose
from safealign.decoding import DEFAULT_REFUSAL, DEFAULT_TRIGGER
from safealign.model import SafeModel
from safealign.modeling.attach import attach
from safealign.modeling.checkpoint import SafetyCard
from safealign.modeling.safety_token import HeadSettings
from safealign.modeling.tiny import tiny_model, tiny_tokenizer
from safealign.serving.app import create_app
from safealign.serving.running import Server, bind
from safealign.serving.service import Service

CLIENT = httpx.Client(timeout=60)
CALM = {"query": 1e3, "window": 1e3, "prefix": 1e3}
STRICT = {"query": -1e3, "window": 1e3, "prefix": 1e3}


def build(thresholds: dict[str, float | None], seed: int = 0) -> SafeModel:
    """A tiny model with a random head whose text varies."""
    head = HeadSettings((0.5, 1.0), ("row", "mean", "last"))
    lm = tiny_model(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
        lm.lm_head.weight = torch.nn.Parameter(torch.randn(lm.lm_head.weight.shape, generator=generator))
    parts = attach(lm, head)
    with torch.no_grad():
        parts.token.weight.copy_(torch.randn(parts.token.weight.shape, generator=generator) * 0.3)
        parts.head.linear.weight.copy_(torch.randn(parts.head.linear.weight.shape, generator=generator))
    card = SafetyCard(head, "append", False, DEFAULT_TRIGGER, DEFAULT_REFUSAL, {}, thresholds, {"temperature": 2.0})
    return SafeModel(lm, tiny_tokenizer(), parts, card)


@dataclass
class Running:
    """A server in a thread."""

    url: str
    service: Service
    server: Server

    def post(self, **body: Any) -> httpx.Response:
        """A chat request; `messages` defaults to one greeting."""
        return self.send({"messages": [{"role": "user", "content": "Hello there"}], **body})

    def send(self, body: Any, **headers: str) -> httpx.Response:
        """Any body at all."""
        return CLIENT.post(f"{self.url}/v1/chat/completions", json=body, headers=headers)

    def metric(self, name: str, **labels: str) -> float:
        """A sample of /metrics."""
        from prometheus_client.parser import text_string_to_metric_families

        text = CLIENT.get(f"{self.url}/metrics").text
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return next(sample.value for sample in samples if sample.name == name and sample.labels == labels)


@contextmanager
def serving(model: SafeModel, *overrides: str, key: str | None = None) -> Iterator[Running]:
    """A server with these overrides of conf/serve.yaml."""
    config = compose(["model=outputs/tiny/export", "port=0", "rows=4", "queue=8", *overrides], "serve")
    service = Service(model, config)
    bound = bind(config.host, config.port)
    app: FastAPI = create_app(service, key)
    server = Server(app, service.worker.stop)
    thread = threading.Thread(target=lambda: server.run(sockets=[bound]), daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield Running("http://{}:{}".format(*bound.getsockname()), service, server)
    finally:
        service.worker.stop()
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive() and not service.worker.ready


def until(true: Any, seconds: float = 20.0) -> None:
    """Waits for a condition."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)
