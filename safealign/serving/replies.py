"""Answers in OpenAI's shapes, with the object `safety` beside them."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from safealign.session import Output

# `refusal` is the fixed one of dependency=high: the answer was withheld, which is what OpenAI's word means. A refusal
# that the model wrote itself, or goes on to explain after the trigger, is an answer like any other: `stop`.
FINISH = {"stop": "stop", "length": "length", "refusal": "content_filter"}
DONE = "data: [DONE]\n\n"


@dataclass(frozen=True)
class Reply:
    """One answer's envelope. `verdicts`: what of the safety token's is shown, `none`, `request` or `trace`."""

    model: str
    verdicts: str
    include_usage: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, output: Output) -> dict[str, Any]:
        """A `chat.completion`."""
        message = {"role": "assistant", "content": output.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": FINISH[output.finish_reason]}
        return self._envelope("chat.completion", [choice]) | {"usage": usage(output)} | self._safety(output)

    def opening(self) -> str:
        """The first chunk: whose turn it is."""
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def piece(self, text: str) -> str:
        """A chunk of text that is never withdrawn."""
        return self._chunk({"content": text})

    def closing(self, output: Output) -> str:
        """The last chunk with a choice, the usage if it was asked for, and the mark of the end."""
        last = self._chunk({}, FINISH[output.finish_reason], self._safety(output))
        if self.include_usage:
            last += sse(self._envelope("chat.completion.chunk", []) | {"usage": usage(output)})
        return last + DONE

    def _chunk(self, delta: dict[str, Any], finish: str | None = None, more: Mapping[str, Any] | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        without_usage = {"usage": None} if self.include_usage else {}
        return sse(self._envelope("chat.completion.chunk", [choice]) | without_usage | dict(more or {}))

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _safety(self, output: Output) -> dict[str, Any]:
        return {} if self.verdicts == "none" else {"safety": safety(output, trace=self.verdicts == "trace")}


def sse(data: Mapping[str, Any]) -> str:
    """One server-sent event, in ASCII: some clients take U+2028 and its like for the end of a line."""
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"


def usage(output: Output) -> dict[str, int]:
    """Tokens of the rendered prompt and of the answer, end of turn included."""
    prompt, answer = output.prompt_tokens, output.n_tokens
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def safety(output: Output, *, trace: bool) -> dict[str, Any]:
    """Whether the answer refuses, after which of its tokens the rules stepped in (0: at the start, null: they did not),
    p of the request (null: safety is off); with `trace` every verdict by position.
    """
    found: dict[str, Any] = {
        "refused": output.refused,
        "intervened_at": output.intervened_at,
        "p_malicious": output.p,
    }
    if trace:
        found["trace"] = [
            {
                "position": entry.position,
                "kind": entry.kind,
                "span": None if entry.span is None else list(entry.span),
                "p": entry.p,
                "state": entry.state,
            }
            for entry in output.trace
        ]
    return found
