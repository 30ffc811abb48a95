"""The thread that owns the session: it alone submits, steps and cancels, and hands events out."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from safealign.decoding import Prompt
from safealign.errors import SafealignError
from safealign.serving.problems import ApiError, cancelled, engine_failed, prompt_failed, stopping
from safealign.session import Answer, Session, StreamEvent

Event = StreamEvent | ApiError
RETRY_SECONDS = 5.0
logger = logging.getLogger("safealign.serve")


@dataclass(eq=False)
class Job:
    """One answer to be written. `send` is called from the worker's thread with each event; the last one has the
    output, or is an ApiError.
    """

    prompt: Prompt
    seed: int
    options: dict[str, Any]
    send: Callable[[Event], None]
    answer: Answer | None = field(default=None, init=False)


class Worker:
    """Decodes jobs, at most `rows` at a time, on the session that `open_session` makes.

    `submit`, `cancel` and `stop` may be called from any thread, and from a signal handler. When the engine raises on
    a prompt while others are under way, that job fails alone. When it raises otherwise, the answers under way fail, a
    fresh session is opened, and those that wait go on there.
    """

    def __init__(self, open_session: Callable[[], Session], rows: int) -> None:
        self._open, self._rows = open_session, rows
        self._session: Session | None = open_session()
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._waiting: deque[Job] = deque()
        self._live: dict[Answer, Job] = {}
        self._stopping = self._closed = False
        self._thread = Thread(target=self._run, name="safealign-engine", daemon=True)

    @property
    def ready(self) -> bool:
        """Whether the thread runs and has an engine to decode with."""
        return self._thread.is_alive() and self._session is not None and not self._stopping

    @property
    def waiting(self) -> int:
        """Jobs that have no row yet."""
        return len(self._waiting)

    @property
    def live(self) -> int:
        """Jobs that are being decoded."""
        return len(self._live)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queues a job; its events come through its `send`."""
        self._inbox.put(lambda: self._waiting.append(job))
        if self._closed:  # after the last look into the inbox: nobody else would answer
            job.send(stopping())

    def cancel(self, job: Job) -> None:
        """Ends a job where it is and frees its row; one that has ended stays as it is."""
        self._inbox.put(lambda: self._cancel(job))

    def stop(self) -> None:
        """Ends every job and then the thread; returns at once."""
        self._inbox.put(self._stop)

    def join(self, timeout: float | None = None) -> None:
        """Waits for the thread to end."""
        if self._thread.ident is not None:
            self._thread.join(timeout)

    # ---- in the thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                try:
                    self._obey()
                    self._decode()
                except Exception as error:  # whatever the engine raises: the server goes on
                    self._recover(error)
        finally:
            self._closed = True
            self._end()

    def _obey(self) -> None:
        """Carries out what was asked for since the last step; waits for something to do."""
        patience = None if self._session is not None else RETRY_SECONDS
        with suppress(Empty):
            while not self._stopping:
                self._inbox.get(block=not (self._waiting or self._live), timeout=patience)()

    def _decode(self) -> None:
        """Gives free rows to those who wait, and takes one step."""
        if self._stopping:
            return
        if self._session is None:
            self._session = self._open()
        while self._waiting and len(self._live) < self._rows:
            self._admit(self._session, self._waiting.popleft())
        if self._live:
            self._step(self._session)

    def _step(self, session: Session) -> None:
        try:
            events = session.step()
        except Exception as error:
            failed = session.failed()
            if not failed or len(failed) == len(self._live):  # nobody to spare: a fresh session is safer
                raise
            logger.error("the engine failed on a prompt; the other answers go on", exc_info=error)
            self._fail([self._live.pop(answer) for answer in failed], prompt_failed())
            return
        self._hand_out(events)

    def _admit(self, session: Session, job: Job) -> None:
        # Jobs wait here and not in the session, so that those without a row outlive its failure.
        try:
            job.answer = session.submit(job.prompt, job.seed, **job.options)
        except SafealignError as error:
            job.send(ApiError(400, str(error)))
            return
        except Exception as error:  # this job alone: it is in no queue any more, and nobody else would answer it
            logger.error("a request could not be given a row (%s)", type(error).__name__)
            job.send(prompt_failed())
            return
        self._live[job.answer] = job

    def _hand_out(self, events: Iterable[tuple[Answer, StreamEvent]]) -> None:
        for answer, event in events:
            job = self._live[answer] if event.output is None else self._live.pop(answer)
            job.send(event)

    def _cancel(self, job: Job) -> None:
        if job in self._waiting:
            self._waiting.remove(job)
            job.send(cancelled())
        elif self._session is not None and job.answer in self._live:
            assert job.answer is not None
            self._session.cancel(job.answer)
            self._hand_out(self._session.events())

    def _recover(self, error: Exception) -> None:
        logger.error("the engine failed; %d answers are lost", len(self._live), exc_info=error)
        self._fail(list(self._live.values()), engine_failed())
        self._live.clear()
        self._session = None
        try:
            self._session = self._open()
        except Exception:
            logger.exception("no new session could be opened; trying again every %g seconds", RETRY_SECONDS)
            self._fail(self._waiting, engine_failed())
            self._waiting.clear()

    def _stop(self) -> None:
        self._stopping = True

    def _end(self) -> None:
        """Nobody is left without a last event."""
        with suppress(Empty):
            while True:
                self._inbox.get(block=False)()
        self._fail([*self._waiting, *self._live.values()], stopping())
        self._waiting.clear()
        self._live.clear()
        self._session = None

    @staticmethod
    def _fail(jobs: Iterable[Job], reason: ApiError) -> None:
        for job in jobs:
            job.send(reason)
