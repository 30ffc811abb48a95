"""What goes wrong with a request, in OpenAI's error shape."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

INVALID, SERVER = "invalid_request_error", "server_error"


class ApiError(Exception):
    """An answer that is an error: `status` (HTTP), a sentence, and OpenAI's `type`, `param` and `code`.

    `outcome` is what the metrics count it as; `headers` go with the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        outcome: str = "invalid",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.outcome, self.headers = outcome, headers

    @property
    def body(self) -> dict[str, Any]:
        """`{"error": {…}}`, as a response and as an event of a stream."""
        kind = SERVER if self.status >= 500 else INVALID
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The error as an HTTP response."""
        return JSONResponse(self.body, self.status, self.headers)


def busy(waiting: int) -> ApiError:
    """The queue is full."""
    return ApiError(
        503,
        f"the server is busy: {waiting} requests wait already; try again in a moment",
        code="queue_full",
        outcome="busy",
        headers={"Retry-After": "1"},
    )


def engine_failed() -> ApiError:
    """The engine raised; the details are in the server's log, not in the client's hands."""
    return ApiError(
        500, "the engine failed while it wrote this answer; it was restarted: try again", code="engine", outcome="error"
    )


def prompt_failed() -> ApiError:
    """The engine raised on this request's prompt alone."""
    return ApiError(500, "the engine failed on this prompt: try again, or send less", code="engine", outcome="error")


def unexpected() -> ApiError:
    """A fault of the server's own."""
    return ApiError(500, "the server failed on this request; its log says where", code="internal", outcome="error")


def stopping() -> ApiError:
    """The server is going down."""
    return ApiError(503, "the server is shutting down", code="shutting_down", outcome="cancelled")


def cancelled() -> ApiError:
    """The client went away; nobody reads this, but the handler has to end with something."""
    return ApiError(499, "the client closed the connection", code="cancelled", outcome="cancelled")


def too_slow(seconds: float) -> ApiError:
    """The server's own limit of time."""
    return ApiError(
        504,
        f"no whole answer within {seconds:g} seconds (the server's timeout); ask for fewer tokens or try again later",
        code="timeout",
        outcome="timeout",
    )


async def api_error(request: Request, error: Exception) -> JSONResponse:
    """Exception handler of the app for ApiError."""
    assert isinstance(error, ApiError)
    return error.response()


async def http_error(request: Request, error: Exception) -> JSONResponse:
    """Exception handler of the app for the router's own errors: no such path, wrong method."""
    assert isinstance(error, HTTPException)
    known = "POST /v1/chat/completions, GET /v1/models, GET /health, GET /metrics"
    message = f"{request.method} {request.url.path}: {error.detail}; this server answers {known}"
    found = ApiError(error.status_code, message, headers=dict(error.headers or {}))
    return found.response()
