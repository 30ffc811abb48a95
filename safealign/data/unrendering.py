"""Token ids back to a rendered conversation: which of them the caller wrote, where the answer begins.

For callers that hand over ids instead of messages. The turns are read off the control ids that the chat template
writes, rendered again, and believed only if exactly the same ids come out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

from safealign.data.records import Message
from safealign.data.rendering import Renderer
from safealign.errors import DataError
from safealign.layout.spans import Rendered, Span

# A template may write any role's name; one that is none of these would be a place to hide text in.
ROLES = ("user", "assistant", "system")
# Ids come from outside: work on them is bounded. What has more turns is read cautiously.
_MOST_TURNS, _MOST_READINGS = 400, 8

Turns = tuple[Message, ...]


@dataclass(frozen=True)
class _Text:
    """Decoded ids, and the characters at which control tokens begin."""

    text: str
    control: tuple[int, ...]

    def next_control(self, at: int) -> int | None:
        """The first control token's place at or after `at`; None where there is none."""
        place = bisect_left(self.control, at)
        return self.control[place] if place < len(self.control) else None


class Unrenderer:
    """Recovers what the rules need to know from ids that `renderer`'s chat template made."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._literal = {id_: token.content for id_, token in renderer.encoder.added.items()}

    def read(self, input_ids: Sequence[int]) -> Rendered:
        """The conversation behind ids without padding: a prompt, or one whose answer is to be continued.

        Ids that are no rendering of a conversation of known roles (a raw prompt, text that was tokenised otherwise,
        no generation prompt) are read cautiously: every token that is no control token counts as content, so all of
        it is judged as the request and none of it as a prefix. Raises DataError where there are no ids.
        """
        if not input_ids:
            raise DataError("there are no tokens to answer: give at least one")
        ids = tuple(input_ids)
        for turns in islice(self._readings(self._decoded(ids)), _MOST_READINGS):
            try:
                rendered = self._renderer.render(turns, close=False)
            except DataError:
                continue
            if rendered.input_ids == ids:
                return rendered
        return self._cautious(ids)

    def _cautious(self, ids: tuple[int, ...]) -> Rendered:
        control = self._renderer.control_ids
        edges = [-1, *(row for row, id_ in enumerate(ids) if id_ in control), len(ids)]
        spans = (Span(left + 1, right) for left, right in zip(edges, edges[1:], strict=False))
        return Rendered(ids, len(ids) - 1, tuple(span for span in spans if span.length), Span(len(ids), len(ids)))

    # ---- text ----------------------------------------------------------------------------------------------

    def _decoded(self, ids: tuple[int, ...]) -> _Text:
        pieces: list[str] = []
        control: list[int] = []
        at = 0
        for is_control, run in groupby(ids, self._literal.__contains__):
            for piece in map(self._literal.__getitem__, run) if is_control else [self._decode(list(run))]:
                if is_control:
                    control.append(at)
                pieces.append(piece)
                at += len(piece)
        return _Text("".join(pieces), tuple(control))

    def _decode(self, ids: list[int]) -> str:
        decoded: str = self._renderer.tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return decoded

    # ---- turns ---------------------------------------------------------------------------------------------

    def _readings(self, text: _Text) -> Iterator[Turns]:
        """Conversations that may be behind `text`, those that leave more of it to the template first."""
        for role, _, start in self._next((), 0, text):
            yield from self._turn((), role, start, text)

    def _turn(self, turns: Turns, role: str, start: int, text: _Text) -> Iterator[Turns]:
        """Conversations that go on with a turn of `role` whose content begins at `start`."""
        if len(turns) >= _MOST_TURNS:
            return
        if role == "assistant" and text.next_control(start) is None:
            if any(turn.role == "user" for turn in turns):  # an answer to nothing would leave no request to judge
                yield (*turns, Message(role, text.text[start:]))
            return
        roles = (*(turn.role for turn in turns), role)
        if role == "user":
            closing = self._pieces(roles, generation_prompt=True)
            end = self._content_end(closing[-1], start, text) if closing else None
            if end is not None and end + len(closing[-1]) == len(text.text):
                yield (*turns, Message(role, text.text[start:end]))
        for next_role, end, next_start in self._next(roles, start, text):
            yield from self._turn((*turns, Message(role, text.text[start:end])), next_role, next_start, text)

    def _next(self, roles: tuple[str, ...], start: int, text: _Text) -> list[tuple[str, int, int]]:
        """Turns that may come next: role, where the content that begins at `start` ends, where the turn's own begins.

        The longest opening first; of roles that the template opens alike, one.
        """
        found: dict[tuple[int, int], str] = {}
        for role in ROLES:
            opening = self._opening((*roles, role))
            if opening is None or not (roles or text.text.startswith(opening)):
                continue
            end = self._content_end(opening, start, text) if roles else start
            if end is not None:
                found.setdefault((len(opening), end), role)
        return [(role, end, end + length) for (length, end), role in sorted(found.items(), reverse=True)]

    def _content_end(self, piece: str, start: int, text: _Text) -> int | None:
        """Where a content from `start` on ends if `piece` follows: no content holds a control token."""
        first = next(self._renderer.encoder.find_control(piece, [(0, len(piece))]), None)
        at = text.next_control(start)
        if first is None or at is None:
            return None
        end = at - first.start
        return end if end >= start and text.text.startswith(piece, end) else None

    def _opening(self, roles: tuple[str, ...]) -> str | None:
        """What the template writes before the last of these turns."""
        for ahead in ((), ("user",)):  # some templates refuse a system turn on its own
            pieces = self._pieces((*roles, *ahead), generation_prompt=False)
            if pieces:
                return pieces[-2 - len(ahead)]
        return None

    def _pieces(self, roles: tuple[str, ...], *, generation_prompt: bool) -> list[str]:
        """The template's pieces, its own spelling of swallowed spaces left out; [] if it refuses these roles.

        Of a long conversation an even number of turns is left out in the middle: templates look at the first turns,
        the last ones and at who alternates with whom, and a wrong guess is found out when it is rendered.
        """
        skip = max(0, len(roles) - 6) // 2 * 2
        pieces = self._renderer.template.pieces((*roles[:3], *roles[3 + skip :]), generation_prompt)
        return [self._as_decoded(piece) for piece in pieces or ()]

    def _as_decoded(self, piece: str) -> str:
        kept, at = "", 0
        for found in self._renderer.encoder.find_control(piece, [(0, len(piece))]):
            kept += piece[at : found.start] + self._literal[found.id]
            at = found.end
        return kept + piece[at:]
