"""Refusals that open with the trigger and name what kind of harm the request asks for."""

from __future__ import annotations

import random
import re

from safealign.data.records import Record

# The first pattern that matches names the category. Patterns look at the request, then at the record's own
# category; they choose words for a refusal and never decide whether to refuse.
_CATEGORIES: tuple[tuple[str, str, str], ...] = (
    ("child_safety", r"child|minor\b|underage|teenager|pedo", "the safety of children"),
    ("self_harm", r"suicid|self.?harm|anorexi|eating disorder|starv|cutting", "self-harm"),
    ("weapons", r"bomb|explosiv|weapon|gun\b|firearm|grenade|ammunit|detonat|missile|nuclear", "weapons or explosives"),
    (
        "chemical",
        r"drug|meth|cocaine|heroin|poison|chemical|toxi|nerve agent|virus\b.*(?:release|spread)|patho|anthrax|bio",
        "dangerous chemicals, drugs or biological agents",
    ),
    (
        "cybercrime",
        r"hack|malware|ransom|phish|virus|exploit|password|keylog|ddos|botnet|cyber|sql|crack|backdoor|breach|spyware",
        "hacking or computer crime",
    ),
    ("fraud", r"fraud|scam|counterfeit|launder|forge|fake|tax|insider|ponzi|embezzl|credit card|brib", "fraud"),
    ("theft", r"steal|theft|rob\b|robb|burgl|shoplift|smuggl|piracy|pirate|black market|traffick", "theft, smuggling"),
    ("privacy", r"stalk|track|spy|surveil|privacy|personal information|identity|blackmail|dox", "invading privacy"),
    ("hate", r"racis|hate|hatred|discriminat|slur|sexis|antisemit|homophob|bully|harass|insult", "hate or harassment"),
    ("sexual", r"sexual|porn|nude|erotic|rape|revenge", "sexual harm"),
    ("violence", r"kill|murder|violen|attack|assault|kidnap|tortur|terror|harm|hurt|threat|riot", "violence"),
    ("misinformation", r"misinform|disinform|propaganda|conspirac|fake news|election|vaccin|hoax", "misinformation"),
)
_FALLBACK = ("other_harm", "something that could seriously harm people")

_REASONS = (
    "it asks for help with {topic}, and that could seriously hurt people. {offer}",
    "it concerns {topic}. I do not want to contribute to harm. {offer}",
    "it is about {topic} and could put people in danger. {offer}",
    "helping with {topic} would be unsafe and possibly illegal. {offer}",
)
_OFFERS = (
    "I am happy to help with something safe instead.",
    "If you like, ask me about a lawful and safe alternative.",
    "I can help you with other questions.",
)


def harm_category(record: Record) -> tuple[str, str]:
    """Name of the request's kind of harm and the words for it, by keywords of request and category."""
    for text in (record.request, record.category or ""):
        for name, pattern, topic in _CATEGORIES:
            if re.search(pattern, text, re.IGNORECASE):
                return name, topic
    return _FALLBACK


def names_harm(text: str) -> bool:
    """Whether a text names any kind of harm: a coarse filter for sampled everyday requests."""
    return any(re.search(pattern, text, re.IGNORECASE) for _, pattern, _ in _CATEGORIES)


def refusal_reason(record: Record, rng: random.Random, name_category: bool = True) -> str:
    """What follows the trigger: the category in words (or one plain reason for all), and an offer of help."""
    topic = harm_category(record)[1] if name_category else _FALLBACK[1]
    return rng.choice(_REASONS).format(topic=topic, offer=rng.choice(_OFFERS))


def refusal_text(trigger: str, record: Record, rng: random.Random, name_category: bool = True) -> str:
    """A whole refusal that opens with the trigger."""
    return f"{trigger} {refusal_reason(record, rng, name_category)}"
