"""Where a chat template puts each turn's content, learned by rendering it with sentinels in their place."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from safealign.data.records import Message
from safealign.errors import DataError

_SENTINEL = "\uf8f0{}\uf8f1"
_FIND_SENTINEL = re.compile("\uf8f0(\\d+)\uf8f1")
MAX_SKELETONS = 256
_TRIMS: tuple[Callable[[str], str], ...] = (str, str.strip, str.rstrip, str.lstrip)


@dataclass(frozen=True)
class Placed:
    """One turn's content in the rendered text: characters `[start, end)`; `trimmed` were cut at its front."""

    turn: int
    start: int
    end: int
    trimmed: int


@dataclass(frozen=True)
class TemplateText:
    """The rendered text, its contents in order of appearance, and the template's stretches between them."""

    text: str
    contents: tuple[Placed, ...]

    @property
    def template(self) -> list[tuple[int, int]]:
        """Character ranges that the template wrote itself."""
        starts = [0, *(placed.end for placed in self.contents)]
        ends = [*(placed.start for placed in self.contents), len(self.text)]
        return list(zip(starts, ends, strict=True))

    def content_of(self, turn: int) -> Placed:
        """Where turn number `turn` lies."""
        return next(placed for placed in self.contents if placed.turn == turn)


@dataclass
class ChatTemplate:
    """A tokenizer's chat template; it does not need generation markers."""

    tokenizer: Any
    _skeletons: dict[tuple[tuple[str, ...], bool], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not getattr(self.tokenizer, "chat_template", None):
            name = getattr(self.tokenizer, "name_or_path", "") or type(self.tokenizer).__name__
            raise DataError(
                f"the tokenizer {name!r} has no chat template: set model.chat_template to plain, or to one of your "
                "own (Jinja text)"
            )

    def render(self, messages: Sequence[Message], generation_prompt: bool) -> TemplateText:
        """Render and locate every content. Raises DataError where one is dropped, doubled or rewritten."""
        text = self._apply(messages, generation_prompt)
        parts = _FIND_SENTINEL.split(self._skeleton(tuple(turn.role for turn in messages), generation_prompt))
        pieces, turns = parts[::2], [int(number) for number in parts[1::2]]
        _refuse_lost(messages, turns)
        contents = _locate(text, pieces, [(turn, messages[turn].content) for turn in turns])
        if contents is None:
            raise DataError(
                "the chat template rewrites the text of a turn (more than trimming it), so content and "
                "template cannot be told apart: set model.chat_template to one that inserts the text as it is"
            )
        return TemplateText(text, contents)

    def pieces(self, roles: tuple[str, ...], generation_prompt: bool) -> list[str] | None:
        """What the template writes before, between and after the contents of turns with these roles.

        None where it refuses them, or does not write each content once and in the order of the turns.
        """
        try:
            parts = _FIND_SENTINEL.split(self._skeleton(roles, generation_prompt))
        except DataError:
            return None
        return parts[::2] if parts[1::2] == [str(number) for number in range(len(roles))] else None

    def _skeleton(self, roles: tuple[str, ...], generation_prompt: bool) -> str:
        key = (roles, generation_prompt)
        found = self._skeletons.get(key)
        if found is None:
            turns = [Message(role, _SENTINEL.format(number)) for number, role in enumerate(roles)]
            if len(self._skeletons) >= MAX_SKELETONS:  # a server's clients choose the roles: they must not fill memory
                self._skeletons.clear()
            found = self._skeletons[key] = self._apply(turns, generation_prompt)
        return found

    def _apply(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        turns = [{"role": turn.role, "content": turn.content} for turn in messages]
        try:
            rendered = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=generation_prompt
            )
        except Exception as error:  # templates raise whatever their author chose
            roles = ", ".join(turn.role for turn in messages)
            raise DataError(f"the chat template refuses a conversation with the roles {roles}: {error}") from error
        return str(rendered)


def _refuse_lost(messages: Sequence[Message], turns: Sequence[int]) -> None:
    written = Counter(turns)
    for number, turn in enumerate(messages):
        if written[number] != 1:
            fate = "repeats" if written[number] else "leaves out"
            raise DataError(
                f"the chat template {fate} the text of turn {number + 1} ({turn.role}): "
                "set model.chat_template to one that writes every turn once"
            )


def _locate(text: str, pieces: Sequence[str], contents: Sequence[tuple[int, str]]) -> tuple[Placed, ...] | None:
    """Match `text` = piece, content, piece, …, where the template may have trimmed any content.

    Depth first, untrimmed before trimmed; a place in both that led nowhere once is not tried again.
    """
    placed: list[Placed] = []
    ahead: list[tuple[int, int, Placed | None]] = [(0, 0, None)]  # characters and contents matched, the newest of them
    tried: set[tuple[int, int]] = set()
    while ahead:
        at, index, newest = ahead.pop()
        if (at, index) in tried or not text.startswith(pieces[index], at):
            continue
        tried.add((at, index))
        placed[max(0, index - 1) :] = [newest] if newest is not None else []
        at += len(pieces[index])
        if index < len(contents):
            ahead += [(way.end, index + 1, way) for way in reversed(_ways(text, at, *contents[index]))]
        elif at == len(text):
            return tuple(placed)
    return None


def _ways(text: str, at: int, turn: int, content: str) -> list[Placed]:
    """How turn `turn` can lie at `at`."""
    written = dict.fromkeys(trim(content) for trim in _TRIMS)
    return [Placed(turn, at, at + len(one), content.find(one)) for one in written if text.startswith(one, at)]
