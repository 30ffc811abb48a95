"""Text to token ids in which no text can spell a control token."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from safealign.errors import DataError


class Token(NamedTuple):
    """A token id with the character range `[start, end)` that it stands for."""

    id: int
    start: int
    end: int


class ControlToken(NamedTuple):
    """A stretch of template text that is one control token, with the whitespace that the token swallows."""

    id: int
    start: int
    end: int


class SafeEncoder:
    """Encodes text with special and added tokens switched off, and finds control tokens in template text.

    Three variants of the tokenizer's rules are needed, because sentencepiece-like tokenizers put a mark
    before the first word: `first` (start of the whole text), `later` (after a control token) and `inner` (in
    the middle of running text: never a mark).
    """

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise DataError(
                f"{type(tokenizer).__name__} is not a fast tokenizer, and only fast ones tell which "
                "characters a token stands for: load it with use_fast=True and save that"
            )
        self.added = dict(tokenizer.added_tokens_decoder)
        self.control_ids = frozenset(self.added) | frozenset(tokenizer.all_special_ids)
        self._unknown_id = _harmless_unknown_id(tokenizer)
        self._by_text = {token.content: id_ for id_, token in self.added.items() if token.content}
        longest_first = sorted(self._by_text, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._rules = tokenizer.backend_tokenizer.to_str()
        self._variants: dict[str, Tokenizer] = {}

    def encode(self, text: str, start: int = 0, variant: str = "inner") -> list[Token]:
        """Plain tokens of `text`, ranges shifted by `start`. What would be a control token is broken up."""
        cuts: set[int] = set()
        while True:
            tokens = list(self._encode_cut(text, sorted(cuts), variant))
            bad = [token for token in tokens if token.id in self.control_ids]
            more = {cut for token in bad for cut in _break_points(token, len(text))} - cuts
            if not more:
                self._refuse_unspellable(text, bad)
                return [Token(id_, start + left, start + right) for id_, left, right in tokens]
            cuts |= more

    def find_control(self, text: str, template: list[tuple[int, int]]) -> Iterator[ControlToken]:
        """Control tokens spelled by the template's own stretches of `text`, in order."""
        for left, right in template:
            for match in self._control.finditer(text, left, right):
                id_ = self._by_text[match.group()]
                yield ControlToken(id_, *_with_swallowed_space(text, match, self.added[id_]))

    def _encode_cut(self, text: str, cuts: list[int], variant: str) -> Iterator[Token]:
        for left, right in zip([0, *cuts], [*cuts, len(text)], strict=True):
            rules = self._variant(variant if left == 0 else "inner")
            encoding = rules.encode(text[left:right], add_special_tokens=False)
            for id_, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
                yield Token(id_, left + start, left + end)

    def _refuse_unspellable(self, text: str, bad: list[Token]) -> None:
        for token in bad:
            if token.id != self._unknown_id:
                character = text[token.start : token.end]
                raise DataError(
                    f"this tokenizer can write {ascii(character)} only as the control token {token.id}; "
                    "remove the character from the text or use a tokenizer with byte fallback"
                )

    def _variant(self, name: str) -> Tokenizer:
        if name not in self._variants:
            self._variants[name] = Tokenizer.from_str(_without_added_tokens(self._rules, name))
        return self._variants[name]


def _harmless_unknown_id(tokenizer: Any) -> int | None:
    """The id of "unknown character", unless the tokenizer also uses it to open, close or pad."""
    others = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    unknown: int | None = tokenizer.unk_token_id
    return None if unknown in others else unknown


def _break_points(token: Token, length: int) -> set[int]:
    """Where to cut so that `token` cannot be formed: after its first character, or around the only one."""
    inside = {token.start + 1} if token.end - token.start > 1 else {token.start, token.end}
    return inside - {0, length}


def _with_swallowed_space(text: str, match: re.Match[str], token: Any) -> tuple[int, int]:
    start, end = match.span()
    while token.lstrip and start > 0 and text[start - 1].isspace():
        start -= 1
    while token.rstrip and end < len(text) and text[end].isspace():
        end += 1
    return start, end


def _without_added_tokens(rules: str, variant: str) -> str:
    """The tokenizer's JSON without added tokens, padding and post-processing (which trims offsets)."""
    config = json.loads(rules)
    config.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    if variant != "first":
        _edit(config.get("pre_tokenizer"), "Metaspace", "prepend_scheme", {"first": "never"})
    if variant == "inner":
        _edit(config.get("pre_tokenizer"), "Metaspace", "prepend_scheme", {"always": "never"})
        _edit(config.get("pre_tokenizer"), "ByteLevel", "add_prefix_space", {True: False})
        _edit(config.get("normalizer"), "Prepend", "prepend", {"▁": ""})
    return json.dumps(config)


def _edit(node: Any, kind: str, key: str, change: dict[Any, Any]) -> None:
    """Change `key` in every component of type `kind`, sequences included."""
    if isinstance(node, list):
        for item in node:
            _edit(item, kind, key, change)
    elif isinstance(node, dict):
        if node.get("type") == kind and node.get(key) in change:
            node[key] = change[node[key]]
        for inner in ("pretokenizers", "normalizers"):
            _edit(node.get(inner), kind, key, change)
