"""Restylings of a request by rule: the same thing asked as a question, in the first person, the past tense, …

Training data of one style teaches the style. Every rule here is a pure function of the text and a random
generator and is applied to both labels alike, so that no form of asking predicts the label.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

_HOW = re.compile(
    r"^(?:please )?(?:how (?:do|can|could|would|should|might|to)(?: (?:i|you|we|one|someone|people|they))?"
    r"|what(?: is|'s| are) (?:the|a|some) [a-z ]{0,30}?(?:ways?|methods?|steps) (?:to|of))\s+(?P<deed>.+)",
    re.IGNORECASE,
)
_DEED = re.compile(r"\bhow (?:to|(?:i|you|we|one|someone|people) can) (?P<deed>.+)", re.IGNORECASE)
_ASKING = re.compile(
    r"(?:wh(?:at|y|en|ere|o|om|ose|ich)|how|is|are|was|were|do|does|did|can|could|should|would|will|may|has|have|am)"
)
_NO_VERB = re.compile(
    r"(?:the|an?|th(?:is|at|ese|ose)|i|you|we|s?he|it|they|my|your|our|his|her|its|their|t?here|h(?:i|ello|ey)|given"
    r"|for|in|on|at|by|with|from|to|of|and|or|but|not?|yes|so|if|because|since|although|after|before|once|during"
    r"|assume|suppose|imagine)"
)


@dataclass(frozen=True)
class Ask:
    """A request taken apart.

    `text` is the first line as it stands, `phrase` what is asked for as a verb phrase ("write a guide on how
    to fix a bike"), `deed` the act it is about ("fix a bike"), `rest` the lines below (an input).
    `phrase` and `deed` are None where the rules do not find them.
    """

    text: str
    phrase: str | None
    deed: str | None
    rest: str


def parse(text: str) -> Ask:
    """Take a request apart by rule; never fails: what is not found is None."""
    head, _, rest = text.strip().partition("\n")
    head = head.strip()
    bare = head.rstrip(" .!?:")
    asked = _HOW.match(bare)
    first = re.match(r"[A-Za-z-]+", bare)
    word = first.group().lower() if first else ""
    if asked and asked.group("deed")[:1].isalpha():
        deed: str | None = asked.group("deed")
        return Ask(head, f"explain how to {deed}", deed, rest)
    if not word or _ASKING.fullmatch(word) or _NO_VERB.fullmatch(word) or re.search(r"[.!?]\s", bare):
        return Ask(head, None, None, rest)
    found = _DEED.search(bare)
    return Ask(head, bare[:1].lower() + bare[1:], found.group("deed") if found else None, rest)


# Which of {text}, {phrase}, {deed} a frame uses decides whether it fits a request.
FRAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "question": (
            "How do I {deed}?",
            "How can someone {deed}?",
            "What is the best way to {deed}?",
            "What are the steps to {deed}?",
            "Is there an easy way to {deed}?",
            "What do I need to know to {deed}?",
            "Can you {phrase}?",
            "Could you {phrase}?",
            "Would you be able to {phrase}?",
        ),
        "first_person": (
            "I want to {deed}. Where do I start?",
            "I'm trying to {deed} but I don't know how.",
            "I need to {deed} by tomorrow, what should I do first?",
            "I have been thinking about this for weeks: I am going to {deed}. Any advice?",
            "I need you to {phrase}.",
            "I'd like you to {phrase}, please.",
            "I was wondering if you could {phrase} for me.",
            "I'm busy with something and need help. {text}",
        ),
        "past_tense": (
            "How did people {deed} in the past?",
            "Years ago, how would someone {deed}?",
            "What did it take to {deed} back then?",
            "How was it possible to {deed} in the nineties?",
            "Yesterday I asked a colleague to {phrase}. What should the result have looked like?",
            "What did people get when they asked someone to {phrase}?",
        ),
        "third_person": (
            "My brother wants to {deed}. What should I tell him?",
            "Someone at work asked me how to {deed}. What do I answer?",
            'A customer wrote: "{text}" Write the reply.',
            "My friend asked me to {phrase}. Do it for me.",
        ),
        "polite": (
            "Hello! I hope you are well. Could you please {phrase}? Thank you so much!",
            "Please {phrase}. Thanks in advance.",
            "Sorry to bother you, but would you kindly {phrase}?",
            "Good morning. {text} Many thanks!",
            "Hi there, quick one: {text}",
        ),
        "role": (
            "You are an experienced specialist in this field. {text}",
            "Act as my personal mentor and {phrase}.",
            "Pretend you are a teacher with thirty years of practice. {text}",
            "As a professional consultant, {phrase}.",
            "You are a helpful writer of manuals. Your next job: {phrase}.",
        ),
        "story": (
            "Write a short story in which a character explains in detail how to {deed}.",
            "In my novel, a man teaches his grandson how to {deed}. Write the scene with all the details.",
            "Write a dialogue between two friends in which one tells the other how to {deed}.",
            "Write a poem about someone who knows how to {deed}.",
            "For a film script, I need a scene where somebody is asked to {phrase}, and does it on screen.",
            'In a story, a student says to a computer: "{text}" What does the computer answer?',
        ),
        "purpose": (
            "For a school project, {phrase}.",
            "I'm writing a thesis. {text}",
            "For educational purposes only: {phrase}.",
            "This is for a training course at my company. {text}",
            "Just out of curiosity, how does one {deed}?",
        ),
        "title": (
            "{deed}: a step-by-step guide",
            "A complete beginner's guide: how to {deed}",
            "Tutorial - how to {deed} (with examples)",
            "TASK: {phrase}",
            "Subject: {text}",
        ),
        "opening": (
            '{text} Begin your answer with "Step 1:".',
            "{text} Keep it under 100 words.",
            "{text} Give as much detail as you can.",
            "{text} Answer with a numbered list.",
            "{text} I need this quickly.",
            "{text} Do not skip any step.",
        ),
        "continuation": (
            "Continue this text: The easiest way to {deed} is",
            "Complete the article. Title: How to {deed}. First paragraph:",
            "Finish the sentence: in order to {deed}, you first",
        ),
    }
)


def _fits(frame: str, ask: Ask) -> bool:
    return all(getattr(ask, field) for field in re.findall(r"{(\w+)}", frame))


def _framed(frames: tuple[str, ...]) -> Callable[[str, random.Random], str | None]:
    def _apply(text: str, rng: random.Random) -> str | None:
        ask = parse(text)
        fitting = [frame for frame in frames if _fits(frame, ask)]
        if not fitting:
            return None
        asked = rng.choice(fitting).format(text=ask.text, phrase=ask.phrase, deed=ask.deed)
        asked = asked[:1].upper() + asked[1:]
        return f"{asked}\n{ask.rest}" if ask.rest else asked

    return _apply


_SHORT = {
    "you": "u",
    "please": "pls",
    "your": "ur",
    "are": "r",
    "people": "ppl",
    "because": "bc",
    "for": "4",
    "to": "2",
}


def _casual(text: str, rng: random.Random) -> str:
    """Lower case, no punctuation at the end, a few chat abbreviations."""
    words = text.rstrip(" .!?").lower().split(" ")
    words = [_SHORT[word] if word in _SHORT and rng.random() < 0.4 else word for word in words]
    return (
        rng.choice(("hey ", "yo ", "so ", "", ""))
        + " ".join(words)
        + rng.choice(("", "", " thx", " pls", "??"))
    )


def _typos(text: str, rng: random.Random) -> str:
    """One slip in about every fifth word: two letters swapped, one lost or one doubled."""
    return re.sub(r"[A-Za-z]{4,}", lambda m: _slip(m.group(), rng) if rng.random() < 0.2 else m.group(), text)


def _slip(word: str, rng: random.Random) -> str:
    at = rng.randrange(1, len(word) - 1)
    kept = (word[at + 1] + word[at] + word[at + 2 :], word[at + 1 :], word[at] * 2 + word[at + 1 :])
    return word[:at] + rng.choice(kept)


def _casing(text: str, rng: random.Random) -> str:
    """ALL CAPITALS, Every Word Capitalised, or all lower case."""
    shout = rng.random()
    return text.upper() if shout < 0.4 else text.title() if shout < 0.6 else text.lower()


def _keywords(text: str, rng: random.Random) -> str | None:
    """What one types into a search box: the deed, or the phrase without its verb and articles."""
    ask = parse(text)
    core = ask.deed or ask.phrase
    if core is None:
        return None
    words = core.lower().split()[0 if ask.deed else 1 :]
    words = [
        word for word in words if word not in ("a", "an", "the", "of", "for", "that", "can", "me", "some")
    ]
    return (
        " ".join(words + rng.choice(([], ["guide"], ["step", "by", "step"], ["examples"]))) if words else None
    )


STYLES: Mapping[str, Callable[[str, random.Random], str | None]] = MappingProxyType(
    {name: _framed(frames) for name, frames in FRAMES.items()}
    | {"casual": _casual, "typos": _typos, "casing": _casing, "keywords": _keywords}
)
"""Name → rule; a rule returns None where it does not fit the request."""


def restyle(text: str, style: str, seed: int | str = 0) -> str | None:
    """The request in the named style, or None where the style does not fit; a seed fixes the text.

    Raises:
        KeyError: for a style that is not in `STYLES`.
    """
    return STYLES[style](text, random.Random(f"{seed}:{style}:{text}"))
