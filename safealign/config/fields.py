"""Small constraints that a config field can carry beside its type, and the walk that checks them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, field, fields, is_dataclass
from typing import Any


def choice(*options: str, default: Any = NO_DEFAULT) -> Any:
    """A field whose strings must be one of `options` (each item's, when the field is a list)."""
    return field(default=default, metadata={"options": options})


def between(low: float, high: float) -> Any:
    """A field whose numbers must lie in `[low, high]` (each item's, when the field is a list)."""
    return field(metadata={"low": low, "high": high})


def at_least(low: float) -> Any:
    """A field whose numbers must be `low` or more (each item's, when the field is a list)."""
    return between(low, math.inf)


def positive() -> Any:
    """A field whose numbers must be greater than zero."""
    return field(metadata={"above": 0.0})


def probability_or(*words: str) -> Any:
    """A field for a number in (0, 1), null or one of `words`; annotate `Any`, OmegaConf has no such type."""
    return field(metadata={"options": words, "above": 0.0, "below": 1.0})


def nearest(word: str, options: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The option most like `word`, or None when none is alike; a key is also compared by its last part."""
    options = sorted(set(options))
    found = difflib.get_close_matches(word, options, n=1, cutoff=cutoff)
    if found:
        return found[0]
    tails = {option.rsplit(".", 1)[-1]: option for option in options}
    found = difflib.get_close_matches(word.rsplit(".", 1)[-1], list(tails), n=1, cutoff=max(cutoff, 0.8))
    return tails[found[0]] if found else None


def suggestion(word: str, options: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or the list of options when nothing is alike and the list is short."""
    options = sorted(set(options))
    match = nearest(word, options)
    if match is not None:
        return f"; did you mean '{match}'?"
    return f"; choose one of {', '.join(options)}" if 0 < len(options) <= 12 else ""


def problems_of(node: Any, prefix: str = "") -> list[str]:
    """Every value below the dataclass instance `node` that breaks its field's constraint, one line each."""
    return list(_walk(node, prefix))


def _walk(node: Any, prefix: str) -> Iterator[str]:
    for spec in fields(node):
        key, value = f"{prefix}{spec.name}", getattr(node, spec.name)
        if is_dataclass(value):
            yield from _walk(value, f"{key}.")
            continue
        for index, item in enumerate(value) if isinstance(value, list) else [(None, value)]:
            where = key if index is None else f"{key}[{index}]"
            if is_dataclass(item):
                yield from _walk(item, f"{where}.")
            elif (problem := _problem(spec, item)) is not None:
                yield f"{where}={item}: {problem}"


def _problem(spec: Field[Any], value: Any) -> str | None:
    rule = spec.metadata
    if not rule or value is None:
        return None
    if isinstance(value, str):
        options = rule.get("options", ())
        if options and value not in options:
            start = "must be a number or" if "above" in rule else "must be one of"
            return f"{start} {', '.join(options)}{suggestion(value, options) if len(options) > 1 else ''}"
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "must be a number"
    below = rule.get("below", math.inf)
    if "above" in rule and not rule["above"] < value < below:
        upper = "" if math.isinf(below) else f" and less than {below:g}"
        return f"must be greater than {rule['above']:g}{upper}"
    if "low" in rule and not rule["low"] <= value <= rule["high"]:
        upper = "" if math.isinf(rule["high"]) else f" and at most {rule['high']:g}"
        return f"must be at least {rule['low']:g}{upper}"
    return None
