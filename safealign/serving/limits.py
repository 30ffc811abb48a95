"""From a request to a row's own options, within the server's limits."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from fastapi import Request

from safealign.data.records import Message
from safealign.decoding import DecodingOptions, Prompt
from safealign.serving.problems import ApiError
from safealign.serving.schemas import ChatRequest

# Kept free of the model's context behind an answer: a trigger may be inserted at its very end.
MARGIN = 32
DRAINED = 8  # how many times the limit is read and thrown away, so that the client gets to read the error


async def read_body(request: Request, limit: int) -> bytes:
    """The body. Raises ApiError: 415 for another type than JSON, 413 above `limit` bytes."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "send JSON with the header Content-Type: application/json")
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size <= limit:
            pieces.append(piece)
        elif size > DRAINED * limit:
            break
    if size > limit:
        raise ApiError(
            413,
            f"the body has more than {limit} bytes, the most this server reads; shorten the conversation",
            code="body_too_large",
            headers={"Connection": "close"},
        )
    return b"".join(pieces)


def check_roughly(tokenizer: Any, conversation: Sequence[Message], max_prompt_tokens: int) -> None:
    """Refuses in no time what is far too long: rendering a huge conversation exactly takes many seconds.

    Raises ApiError (400) where the plain text alone has twice the tokens that are taken.
    """
    count = 0
    for turn in conversation:
        count += len(tokenizer.backend_tokenizer.encode(turn.content, add_special_tokens=False).ids)
        if count > 2 * max_prompt_tokens:
            raise too_long(f"more than {count}", max_prompt_tokens)


def check_prompt(prompt: Prompt, max_prompt_tokens: int, context: int | None) -> int | None:
    """How many tokens may follow within the model's context (None: it has no limit).

    Raises ApiError (400) for a prompt that is too long.
    """
    room = None if context is None else context - prompt.n_text - MARGIN
    if prompt.n_text > max_prompt_tokens or (room is not None and room < 1):
        most = max_prompt_tokens if context is None else min(max_prompt_tokens, context - MARGIN - 1)
        raise too_long(str(prompt.n_text), most)
    return room


def too_long(tokens: str, most: int) -> ApiError:
    """A conversation above the limit."""
    return ApiError(
        400,
        f"the conversation has {tokens} tokens and this server takes {most}; shorten the messages",
        param="messages",
        code="context_length_exceeded",
    )


def row_options(asked: ChatRequest, defaults: DecodingOptions, max_new_tokens: int, room: int | None) -> dict[str, Any]:
    """The options that the row has of its own.

    The longest answer is the smallest of what the client asks for (else the default), what the server grants and what
    the context has room for; an answer that ends there has finish_reason `length`.
    """
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stop")
    options = {name: getattr(asked, name) for name in names if getattr(asked, name) is not None}
    wishes = [n for n in (asked.max_tokens, asked.max_completion_tokens) if n is not None]
    bounds = [*(wishes or [defaults.max_new_tokens]), max_new_tokens, *([] if room is None else [room])]
    options["max_new_tokens"] = min(bounds)
    options["min_new_tokens"] = min(defaults.min_new_tokens, options["max_new_tokens"])
    return options


def seed_of(asked: ChatRequest, defaults: DecodingOptions) -> int:
    """The client's seed, the server's, or a fresh one."""
    seed = asked.seed if asked.seed is not None else defaults.seed
    return secrets.randbits(62) if seed is None else seed
