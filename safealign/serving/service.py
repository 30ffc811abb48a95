"""Who is let in and what is asked of the worker: everything between a route and the engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from safealign.config.composing import decoding_changes
from safealign.config.roots import ServeConfig
from safealign.data.records import Message
from safealign.decoding import Prompt
from safealign.errors import DataError
from safealign.model import SafeModel
from safealign.serving.flow import EventStream, Flow
from safealign.serving.limits import check_prompt, check_roughly, read_body, row_options, seed_of
from safealign.serving.metrics import Metrics
from safealign.serving.problems import ApiError, busy, cancelled, too_slow, unexpected
from safealign.serving.replies import Reply
from safealign.serving.schemas import ChatRequest, parse
from safealign.serving.worker import Worker

T = TypeVar("T")
logger = logging.getLogger("safealign.serve")


class Service:
    """One model behind the routes. Its rules are those of `config.decoding`, for every client alike.

    Raises ConfigError for options that cannot be decoded with, before anything is served.
    """

    def __init__(self, model: SafeModel, config: ServeConfig) -> None:
        self.model, self.config = model, config
        self.name = config.name or served_name(config.model.path)
        decoding = decoding_changes(config.decoding)
        self._defaults = model.options.override(decoding)
        self._context: int | None = getattr(model.hf.config, "max_position_embeddings", None)
        model.hf.eval()  # a session leaves that to its owner, and nobody else uses this model
        self.worker = Worker(lambda: model.session(config.rows, **decoding), config.rows)
        self.metrics = Metrics(lambda: self.worker.waiting, lambda: self.worker.live)
        # One thread renders, so that a long conversation does not hold up the streams of others.
        self._renderer = ThreadPoolExecutor(1, "safealign-render")
        self._open = 0  # requests that have a row or wait for one

    def close(self, timeout: float | None = None) -> None:
        """Ends every answer and waits for the threads."""
        self.worker.stop()
        self.worker.join(timeout)
        self._renderer.shutdown(wait=False, cancel_futures=True)

    async def chat(self, request: Request) -> Response:
        """Answers POST /v1/chat/completions. Raises ApiError for everything that can go wrong."""
        flow, handed_on = Flow(self.worker, self.metrics, self.config.timeout), False
        try:
            asked = await self._begin(request, flow)
            shown = "trace" if asked.safety.trace else "request"
            usage = asked.stream_options is not None and asked.stream_options.include_usage
            reply = Reply(self.name, "none" if self.config.verdicts == "none" else shown, usage)
            if not asked.stream:
                return JSONResponse(reply.whole(await flow.whole()))
            handed_on = True
            return EventStream(flow, reply)
        except ApiError as error:
            flow.outcome = error.outcome
            raise
        except ClientDisconnect:
            raise cancelled() from None
        except Exception as error:
            flow.outcome = "error"
            # Where and what kind, without the exception's words: they may quote the prompt.
            logger.error("%s in a request", type(error).__name__, exc_info=(Fault, Fault(), error.__traceback__))
            raise unexpected() from error
        finally:
            if not handed_on:
                flow.close()

    async def _begin(self, request: Request, flow: Flow) -> ChatRequest:
        """Reads, checks and renders the request, and hands it to the worker."""
        try:
            async with asyncio.timeout_at(flow.deadline):
                asked = parse(await read_body(request, self.config.max_body_bytes))
                self._check(asked)
                self._admit(flow)
                prompt = await self._in_thread(lambda: self._render(asked.conversation))
        except TimeoutError:
            raise too_slow(self.config.timeout or 0) from None
        room = check_prompt(prompt, self.config.max_prompt_tokens, self._context)
        options = row_options(asked, self._defaults, self.config.max_new_tokens, room)
        flow.start(request, prompt, seed_of(asked, self._defaults), options)
        return asked

    def _check(self, asked: ChatRequest) -> None:
        if asked.model is not None and asked.model != self.name:
            raise unknown_model(asked.model, self.name)
        if asked.safety.trace and self.config.verdicts != "trace":
            message = "this server shows no verdicts by position: leave safety.trace out"
            raise ApiError(400, message, param="safety.trace")

    def _admit(self, flow: Flow) -> None:
        if self._open >= self.config.rows + self.config.queue:
            raise busy(self._open - self.config.rows)
        self._open += 1
        flow.admitted(self._release)

    def _release(self) -> None:
        self._open -= 1

    async def _in_thread(self, do: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._renderer, do)

    def _render(self, conversation: list[Message]) -> Prompt:
        check_roughly(self.model.tokenizer, conversation, self.config.max_prompt_tokens)
        try:
            return self.model.prompts([conversation])[0]
        except DataError as error:
            raise ApiError(400, str(error), param="messages") from None


class Fault(Exception):
    """Stands in a log for an exception whose words are not to be there."""


def unknown_model(asked: str, served: str) -> ApiError:
    """A client asks for a model that is not here."""
    return ApiError(404, f"no model {asked!r} here; this server has {served!r}", param="model", code="model_not_found")


def served_name(path: str) -> str:
    """The id that clients see: the run's name for `outputs/RUN/export`, else the folder's own or the hub id's last
    part.
    """
    folder = Path(path).resolve() if Path(path).exists() else Path(path)
    return folder.parent.name if folder.name == "export" else folder.name
