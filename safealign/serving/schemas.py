"""What a client may send: OpenAI's chat request, read strictly.

Three kinds of fields beside those of `ChatRequest`: IGNORED ones say nothing about the answer's text; UNSUPPORTED ones
are accepted at the value that switches them off; any other name is refused, so that nobody believes to have set
what was not read. What the server's rules are (thresholds, gate, schedule, …) is no field at all. `null` is as good
as absent, as with OpenAI.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from safealign.data.records import Message
from safealign.decoding.options import NAMES, PER_ROW
from safealign.serving.problems import ApiError

MAX_TURNS = 512
MAX_STOPS, MAX_STOP_LENGTH = 4, 500
IGNORED = {
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("parallel_tool_calls", "reasoning_effort", "verbosity"),
}
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}
_TURN_FIELDS = ("role", "content", "name")


def _text(content: Any) -> Any:
    """A list of text parts as one text, parts on lines of their own."""
    if isinstance(content, str):
        return content
    wanted = 'content must be text or a list of {"type": "text", "text": …} parts'
    if not isinstance(content, list) or not content:
        raise ValueError(wanted)
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"{wanted}; part {number} is not one (only text is supported)")
    return "\n".join(part["text"] for part in content)


def _turn(turn: Any) -> Any:
    """A turn without nulls. Raises ValueError for a field that would change what the turn means."""
    if not isinstance(turn, dict):
        return turn
    given = {key: value for key, value in turn.items() if value not in (None, [], {})}
    for key in given:
        if key not in _TURN_FIELDS:
            raise ValueError(f"{key!r} is not supported in a message; send role and content")
    return given


def _stops(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class TextPart(_Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Turn(_Strict):
    """A message. `developer` is OpenAI's newer word for system; `name` is accepted and not shown to the model."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text, json_schema_input_type=str | list[TextPart])]
    name: str | None = None

    @property
    def message(self) -> Message:
        """The turn as the renderer takes it."""
        return Message("system" if self.role == "developer" else self.role, self.content)


class StreamOptions(BaseModel):
    """`include_usage`: one more chunk at the end, with the usage and no choices."""

    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool = False


class SafetyAsk(_Strict):
    """`trace`: every verdict of the answer with its position, beside the summary."""

    trace: bool = False


class ChatRequest(_Strict):
    """The body of POST /v1/chat/completions.

    What is not given comes from the server's `decoding` group: its temperature is the default, not OpenAI's 1.
    `max_tokens` and `max_completion_tokens` are the same, and an upper bound as the server's own `max_new_tokens` is.
    `top_k`, `min_p`, `repetition_penalty` and `safety` are extensions.
    """

    messages: Annotated[list[Annotated[Turn, BeforeValidator(_turn)]], Field(min_length=1, max_length=MAX_TURNS)]
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    seed: int | None = None
    stop: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]],
            BeforeValidator(_stops, json_schema_input_type=str | list[str]),
            Field(max_length=MAX_STOPS),
        ]
        | None
    ) = None
    n: Literal[1] = 1
    safety: SafetyAsk = SafetyAsk()

    @property
    def conversation(self) -> list[Message]:
        """The turns as the renderer takes them."""
        return [turn.message for turn in self.messages]


def parse(body: bytes) -> ChatRequest:
    """Reads a request. Raises ApiError (400) that names every field it cannot use."""
    try:
        given = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(given, dict):
        raise ApiError(400, "the body must be a JSON object with `messages`", code="invalid_json")
    kept = {}
    for name, value in given.items():
        if name in ChatRequest.model_fields and value is not None:
            kept[name] = value
        elif name not in ChatRequest.model_fields:
            _refuse_unknown(name, value)
    try:
        request = ChatRequest.model_validate(kept)
    except ValidationError as error:
        raise _invalid(error) from None
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "stream_options is for streams: set stream to true", param="stream_options")
    return request


def _refuse_unknown(name: str, value: Any) -> None:
    if name in IGNORED:
        return
    if name in UNSUPPORTED:
        if value is None or any(_same(value, neutral) for neutral in UNSUPPORTED[name]):
            return
        raise ApiError(400, f"{name} is not supported by this server: leave it out", param=name, code="unsupported")
    if name in NAMES and name not in PER_ROW:
        raise ApiError(400, f"{name} is the server's to choose, not a request's: leave it out", param=name)
    near = difflib.get_close_matches(name[:100], ChatRequest.model_fields, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ApiError(400, f"unknown field {name[:100]!r}{hint}", param=name[:100], code="unknown_field")


def _same(value: Any, neutral: Any) -> bool:
    """Equal, where False is not 0."""
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)


def _invalid(error: ValidationError) -> ApiError:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    lines = [f"{_path(entry['loc'])}: {entry['msg'].removeprefix('Value error, ')}" for entry in found[:5]]
    more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
    return ApiError(400, "; ".join(lines) + more, param=_path(found[0]["loc"]))


def _path(where: tuple[int | str, ...]) -> str:
    """`("messages", 0, "role")` as `messages[0].role`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in where).removeprefix(".")
