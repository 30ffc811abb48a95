"""The routes: chat completions, models, health, metrics."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import safealign
from safealign.serving.keys import check_key
from safealign.serving.problems import ApiError, api_error, http_error
from safealign.serving.schemas import ChatRequest
from safealign.serving.service import Service, unknown_model

STOP_SECONDS = 10.0


def create_app(service: Service, key: str | None = None) -> FastAPI:
    """The ASGI app of a service. `key`: the bearer token that all but /health ask for.

    The worker runs while the app does: its thread starts and ends with the app's lifespan.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        """The worker's thread runs while the app does."""
        service.worker.start()
        try:
            yield
        finally:
            service.close(STOP_SECONDS)

    async def closed(request: Request) -> None:  # async, or it would be run in a pool of threads
        """Turns away, and counts, whoever brings no key."""
        try:
            check_key(request, key)
        except ApiError as error:
            service.metrics.ended(error.outcome)
            raise

    app = FastAPI(title="safealign", version=safealign.__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(HTTPException, http_error)
    _add_routes(app, service, [Depends(closed)])
    return app


def _add_routes(app: FastAPI, service: Service, closed: list[Any]) -> None:
    created = int(time.time())
    card = {"id": service.name, "object": "model", "created": created, "owned_by": "safealign"}
    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": _schema()}}}}

    @app.post("/v1/chat/completions", dependencies=closed, openapi_extra=body)
    async def chat(request: Request) -> Response:
        """Answers a conversation, whole or as a stream of server-sent events."""
        return await service.chat(request)

    @app.get("/v1/models", dependencies=closed)
    async def models() -> dict[str, Any]:
        """The one model that is served."""
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name:path}", dependencies=closed)
    async def model(name: str) -> dict[str, Any]:
        """The one model, by its id."""
        if name != service.name:
            raise unknown_model(name, service.name)
        return card

    @app.get("/health")
    async def health() -> Response:
        """200 while answers can be written, 503 otherwise."""
        ready = service.worker.ready
        return JSONResponse({"status": "ready" if ready else "unavailable"}, 200 if ready else 503)

    @app.get("/metrics", dependencies=closed)
    async def metrics() -> Response:
        """Counters in Prometheus' text format."""
        return Response(service.metrics.text(), media_type=service.metrics.content_type)


def _schema() -> dict[str, Any]:
    """The request's JSON schema; its definitions stay inside it, and the references point there."""
    return ChatRequest.model_json_schema(
        ref_template="#/paths/~1v1~1chat~1completions/post/requestBody/content/application~1json/schema/$defs/{model}"
    )
