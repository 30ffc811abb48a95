"""One answer on its way from the worker's thread to its client, and what becomes of it when the client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from safealign.decoding import Prompt
from safealign.decoding.decoded import CANCELLED
from safealign.serving.metrics import Metrics
from safealign.serving.problems import ApiError, cancelled, too_slow
from safealign.serving.replies import DONE, FINISH, Reply, sse
from safealign.serving.worker import Event, Job, Worker
from safealign.session import Output, StreamEvent


class Flow:
    """One request's way to the worker and back: submits a prompt, receives its events. `close` it, whatever happens.

    `timeout`: seconds from now on, None for as long as it takes. `outcome`: what the metrics count it as in the end.
    """

    def __init__(self, worker: Worker, metrics: Metrics, timeout: float | None) -> None:
        self._worker, self._metrics, self._timeout = worker, metrics, timeout
        self._loop = asyncio.get_running_loop()
        self._arrived = self._loop.time()
        self.deadline = None if timeout is None else self._arrived + timeout
        self.outcome = "cancelled"
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._release: Callable[[], None] = lambda: None
        self._job: Job | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._silent, self._closed = True, False

    def admitted(self, release: Callable[[], None]) -> None:
        """The request has a place in the queue; `release` gives it back."""
        self._release = release

    def start(self, request: Request, prompt: Prompt, seed: int, options: dict[str, Any]) -> None:
        """Hands the prompt to the worker and keeps an eye on the connection."""
        self._job = Job(prompt, seed, options, self._send)
        self._worker.submit(self._job)
        self._watcher = asyncio.create_task(self._watch(request, self._job))

    async def next(self) -> StreamEvent:
        """The next event. Raises ApiError when the answer failed, took too long, or its client went away."""
        try:
            async with asyncio.timeout_at(self.deadline):
                event = await self._events.get()
        except TimeoutError:
            assert self._timeout is not None
            event = too_slow(self._timeout)
        if isinstance(event, ApiError):
            self.outcome = event.outcome
            raise event
        self._measure(event)
        return event

    async def whole(self) -> Output:
        """The whole answer."""
        while (output := (await self.next()).output) is None:
            pass
        return output

    def close(self) -> None:
        """Frees the row of an answer that is not finished, and counts the request; a second time does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._watcher is not None:
            self._watcher.cancel()
        if self._job is not None:
            self._worker.cancel(self._job)  # nothing happens to one that has ended
        self._leave()
        self._metrics.ended(self.outcome)

    def _measure(self, event: StreamEvent) -> None:
        seconds = self._loop.time() - self._arrived
        if event.text and self._silent:
            self._silent = False
            self._metrics.first_text(seconds)
        if event.output is not None:
            self.outcome = FINISH[event.output.finish_reason]
            self._metrics.answered(event.output, seconds)

    def _send(self, event: Event) -> None:
        """From the worker's thread into the event loop."""
        with suppress(RuntimeError):  # the loop is closed: nobody is left to read it
            self._loop.call_soon_threadsafe(self._receive, event)

    def _receive(self, event: Event) -> None:
        if isinstance(event, StreamEvent) and event.output is not None and event.output.finish_reason == CANCELLED:
            self._metrics.spent(event.output)
            event = cancelled()
        if isinstance(event, ApiError) or event.output is not None:
            self._leave()  # now, and not when it is sent: a client that does not read must not keep others out
        self._events.put_nowait(event)

    def _leave(self) -> None:
        release, self._release = self._release, lambda: None
        release()

    async def _watch(self, request: Request, job: Job) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self._worker.cancel(job)


class EventStream(StreamingResponse):
    """The flow as server-sent events; closed even when the client is gone before the first one."""

    def __init__(self, flow: Flow, reply: Reply) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(_events(flow, reply), media_type="text/event-stream", headers=headers)
        self._flow = flow

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI response."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._flow.close()


async def _events(flow: Flow, reply: Reply) -> AsyncIterator[str]:
    yield reply.opening()
    while True:
        try:
            event = await flow.next()
        except ApiError as error:  # the status is sent already: the error comes as an event, which clients raise
            yield sse(error.body) + DONE
            return
        if event.text:
            yield reply.piece(event.text)
        if event.output is not None:
            yield reply.closing(event.output)
            return
