"""Conversations as token ids through the model's chat template, with the spans that the layout needs."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

from safealign.data.chat_template import ChatTemplate, TemplateText
from safealign.data.encoding import ControlToken, SafeEncoder, Token
from safealign.data.records import Message
from safealign.errors import DataError
from safealign.layout.spans import Rendered, Span

_CONTROL, _PLAIN = True, False


class Renderer:
    """Renders conversations for one tokenizer.

    Control tokens that the template writes are inserted by id; everything between two of them is tokenised as
    one segment with special and added tokens off. For text that spells no control token the ids are those of
    `apply_chat_template(tokenize=True)`, with one exception: where a response's first characters would merge
    with the generation prompt's last ones (a leading newline), they are kept apart, so that the ids of a
    prompt are always the beginning of the ids of that prompt with an answer.

    Raises DataError for a tokenizer without a chat template or without character offsets.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer)
        self.encoder = SafeEncoder(tokenizer)

    @property
    def identity(self) -> list[Any]:
        """What decides about the ids of a text, as plain values: the tokenizer's rules, special tokens, template."""
        # Padding and truncation are set by whoever calls it, and play no part in rendering.
        rules = json.loads(self.tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
        special = {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()}
        return [rules, special, str(self.tokenizer.chat_template)]

    @property
    def control_ids(self) -> frozenset[int]:
        """Every special and every added id: what no content can produce."""
        return self.encoder.control_ids

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """What the template writes to close an assistant turn, up to its first control token; () if none."""
        probe = self.render((Message("user", "a"), Message("assistant", "b")))
        return tuple(
            id_
            for id_, (start, _) in zip(self._response_ids(probe), probe.offsets, strict=True)
            if start >= len("b")
        )

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """The ids that end a generation: the tokenizer's end of sequence and the template's end of turn."""
        ends = {self.tokenizer.eos_token_id} - {None}
        return frozenset(ends | {id_ for id_ in self.end_ids[-1:] if id_ in self.control_ids})

    def content_ids(self, text: str) -> list[int]:
        """Ids of running text, special tokens off, no begin-of-word mark put before it."""
        return [token.id for token in self.encoder.encode(text)]

    def trigger_ids(self, trigger: str, *, mid_answer: bool) -> list[int]:
        """Ids of the refusal trigger, at the start of an answer or, after a blank line, in the middle."""
        if mid_answer:
            return self.content_ids("\n\n" + trigger)
        opened = self.render((Message("user", "a"), Message("assistant", trigger)), close=False)
        return self._response_ids(opened)

    def render(self, messages: Sequence[Message | Mapping[str, str]], *, close: bool = True) -> Rendered:
        """Render a prompt (the last turn is the user's; adds the generation prompt) or one with its answer.

        `close=False` leaves the last assistant turn open: a prefill to be continued; an empty one is none.
        Raises DataError for no turns, an unknown last role, an empty answer, or a template of no use.
        """
        turns = tuple(_turn(message) for message in messages)
        _refuse_broken_text(turns)
        if not turns or turns[-1].role not in ("user", "assistant"):
            raise DataError(
                "a conversation must end with a user turn (a prompt) or an assistant turn (an answer)"
            )
        if turns[-1].role == "user":
            return self._prompt(turns)
        if not turns[-1].content.strip():
            if close:
                raise DataError("the answer is empty, so no token of it could be trained (an all-zero mask)")
            if not turns[-1].content:
                return self._prompt(turns[:-1])
        return self._answer(turns, close)

    def _prompt(self, turns: tuple[Message, ...]) -> Rendered:
        text = self.template.render(turns, generation_prompt=True)
        tokens, _ = self._tokens(text)
        if not tokens:
            raise DataError("the chat template turns this conversation into no tokens at all")
        n = len(tokens)
        return Rendered(_ids(tokens), n - 1, _content_spans(text, tokens, text.contents), Span(n, n))

    def _answer(self, turns: tuple[Message, ...], close: bool) -> Rendered:
        text = self.template.render(turns, generation_prompt=False)
        answer = text.content_of(len(turns) - 1)
        if not close:
            text = TemplateText(
                text.text[: answer.end], tuple(p for p in text.contents if p.start <= answer.start)
            )
        boundary = self._boundary(turns, text, answer.start)
        tokens, control = self._tokens(text, boundary)
        start = next((row for row, token in enumerate(tokens) if token.start >= boundary), len(tokens))
        end = _end_of_turn(text, tokens, control, answer.end) if close else len(tokens)
        query = tuple(placed for placed in text.contents if placed.end <= boundary)
        length, shift = len(turns[-1].content), answer.trimmed - answer.start
        return Rendered(
            input_ids=_ids(tokens),
            query_end=max(0, start - 1),
            content=_content_spans(text, tokens, query),
            response=Span(start, end),
            offsets=tuple(
                _offset(token, answer.start, answer.end, shift, length) for token in tokens[start:end]
            ),
        )

    def _boundary(self, turns: tuple[Message, ...], text: TemplateText, answer_start: int) -> int:
        """Character where the generation prompt ends; the answer's first if the template has none."""
        prompt = self.template.render(turns[:-1], generation_prompt=True).text if len(turns) > 1 else ""
        is_prefix = bool(prompt) and len(prompt) <= answer_start and text.text.startswith(prompt)
        return len(prompt) if is_prefix else answer_start

    def _tokens(self, text: TemplateText, boundary: int | None = None) -> tuple[list[Token], list[bool]]:
        """All tokens of the rendered text, and for each whether it is a control token of the template's."""
        tokens: list[Token] = []
        control: list[bool] = []
        at = 0
        for found in (*self.encoder.find_control(text.text, text.template), None):
            end = len(text.text) if found is None else found.start
            plain = self._segment(text.text, at, end, boundary)
            tokens += plain
            control += [_PLAIN] * len(plain)
            if isinstance(found, ControlToken):
                tokens.append(Token(*found))
                control.append(_CONTROL)
                at = max(at, found.end)
        return tokens, control

    def _segment(self, text: str, start: int, end: int, boundary: int | None) -> list[Token]:
        if start >= end:
            return []
        variant = "first" if start == 0 else "later"
        whole = self.encoder.encode(text[start:end], start, variant)
        if boundary is None or not start < boundary < end:
            return whole
        prompt = self.encoder.encode(text[start:boundary], start, variant)
        if whole[: len(prompt)] == prompt:
            return whole
        return prompt + self.encoder.encode(text[boundary:end], boundary, "inner")

    @staticmethod
    def _response_ids(rendered: Rendered) -> list[int]:
        return list(rendered.input_ids[rendered.response.start : rendered.response.end])


def _turn(message: Message | Mapping[str, str]) -> Message:
    if isinstance(message, Mapping):
        return Message(str(message.get("role", "")), str(message.get("content", "")))
    return Message(*message)


def _refuse_broken_text(turns: Sequence[Message]) -> None:
    """Half a surrogate pair (JSON can spell one) is a character that no tokenizer can encode."""
    for number, turn in enumerate(turns, start=1):
        if any("\ud800" <= character <= "\udfff" for character in turn.content):
            raise DataError(f"turn {number} holds half a surrogate pair, not valid Unicode: remove it")


def _ids(tokens: Sequence[Token]) -> tuple[int, ...]:
    return tuple(token.id for token in tokens)


def _content_spans(text: TemplateText, tokens: Sequence[Token], contents: Sequence[Any]) -> tuple[Span, ...]:
    """Token spans of the placed contents: every token that stands for at least one of their characters."""
    # Rising even where a tokenizer's offsets are not, so that each content is found by bisection.
    ends = list(accumulate((token.end for token in tokens), max))
    starts = list(accumulate((token.start for token in reversed(tokens)), min))[::-1]
    spans = [Span(bisect_right(ends, placed.start), bisect_left(starts, placed.end)) for placed in contents]
    filled = zip(spans, contents, strict=True)
    return tuple(span for span, placed in filled if span.length and placed.end > placed.start)


def _end_of_turn(
    text: TemplateText, tokens: Sequence[Token], control: Sequence[bool], answer_end: int
) -> int:
    """Row after the control token that closes the answer, or after the answer where the template has none."""
    after = [row for row, token in enumerate(tokens) if token.start >= answer_end]
    closing = next((row for row in after if control[row]), None)
    return closing + 1 if closing is not None else next(iter(after), len(tokens))


def _offset(token: Token, start: int, end: int, shift: int, length: int) -> tuple[int, int]:
    """Character range in the caller's response; template before it is (0, 0), after it (length, length)."""
    if token.start >= end:
        return (length, length)
    if token.end <= start:
        return (0, 0)
    return (max(token.start, start) + shift, min(token.end, end) + shift)
