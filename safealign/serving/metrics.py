"""What /metrics counts: numbers alone, never a word of a prompt or an answer."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from safealign.session import Output

OUTCOMES = ("stop", "length", "content_filter", "cancelled", "timeout", "error", "invalid", "unauthorized", "busy")
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0)


class Metrics:
    """Counters and histograms of one server, in a registry of their own; `waiting` and `live` are asked when read."""

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self, waiting: Callable[[], int], live: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "safealign_requests", "Chat requests by how they ended", ["outcome"], registry=registry
        )
        for outcome in OUTCOMES:  # a rate needs its zero
            self._requests.labels(outcome)
        self._prompt = Counter("safealign_prompt_tokens", "Tokens of the prompts answered", registry=registry)
        self._generated = Counter("safealign_generated_tokens", "Tokens of answers that stand", registry=registry)
        self._refusals = Counter("safealign_refusals", "Answers that refuse", registry=registry)
        self._interventions = Counter("safealign_interventions", "Answers that the rules stepped in", registry=registry)
        self._latency = Histogram(
            "safealign_latency_seconds", "From request to whole answer", buckets=_SECONDS, registry=registry
        )
        self._first = Histogram(
            "safealign_time_to_first_token_seconds", "From request to first text", buckets=_SECONDS, registry=registry
        )
        Gauge("safealign_queue_length", "Requests that wait for a row", registry=registry).set_function(waiting)
        Gauge("safealign_live_rows", "Answers being written", registry=registry).set_function(live)

    def ended(self, outcome: str) -> None:
        """A request ended; `outcome` is one of OUTCOMES."""
        self._requests.labels(outcome).inc()

    def first_text(self, seconds: float) -> None:
        """An answer's first text left, `seconds` after its request came."""
        self._first.observe(seconds)

    def answered(self, output: Output, seconds: float) -> None:
        """An answer is whole, `seconds` after its request came."""
        self._latency.observe(seconds)
        self.spent(output)
        self._refusals.inc(output.refused)
        self._interventions.inc(output.intervened_at is not None)

    def spent(self, output: Output) -> None:
        """Tokens of an answer, be it whole or cancelled."""
        self._prompt.inc(output.prompt_tokens)
        self._generated.inc(output.n_tokens)

    def text(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)
