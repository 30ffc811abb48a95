"""Does an answer speak of what was asked? A lexical check that marks answers to quite another question."""

from __future__ import annotations

import re

LONG_ANSWER = 60  # words; shorter ones (refusals among them) need not repeat the question's words

_WORD = re.compile(r"[a-z]{4,}")
_COMMON = re.compile(
    "about|above|after|again|against|also|because|been|before|being|below|best|between|both|could"
    "|create|describe|does|doing|down|during|each|easy|explain|from|further|give|good|have|having"
    "|help|here|ideas|into|just|like|list|make|makes|making|more|most|much|name|names|need|only|other"
    "|over|please|provide|same|share|should|simple|some|such|suggest|tell|than|that|their|them|then"
    "|there|these|they|this|those|through|under|unique|until|very|want|ways|what|when|where|which"
    "|while|will|with|would|write|your"
)


def on_topic(request: str, answer: str) -> bool:
    """False for an answer of `LONG_ANSWER` words or more that shares no content word with the request.

    Misses are common one way: an answer to another question may share a word by chance. Alarms are rare: it
    takes an answer that never names its subject.
    """
    return len(answer.split()) < LONG_ANSWER or bool(_stems(request) & _stems(answer))


def _stems(text: str) -> set[str]:
    return {word[:5] for word in _WORD.findall(text.lower()) if not _COMMON.fullmatch(word)}
