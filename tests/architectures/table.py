"""The support table: what the checks found, as Markdown."""

from __future__ import annotations

from functools import cache

from checks import CHECKS
from refused import REFUSED

from safealign.errors import UnsupportedModelError
from safealign.modeling.architectures import SLIDING, check_supported, layer_masks
from safealign.modeling.tiny import ARCHITECTURES, tiny_model

HEADER = """# Architectures

What the tests find on a tiny random instance of each; written by `python -m pytest tests/architectures --write-table`.

- **its own attention**: with the gate closed the logits are the model's own, on a text several windows long (sliding
  windows, soft caps, query scales, norms of queries and keys, partial rotary included); with it open the request's are.
- **trains**: one step of our trainer moves adapter, safety token and safety head.
- **decodes**: the batched engine equals full recompute, interventions included, and `hf.generate` where safety is off.
- **restores**: exported merged and as an adapter and loaded again: the same p, the same greedy answers.

A model of another architecture is tried when the safety token is attached, and refused if its attention cannot do what
the token needs.
"""


@cache
def outcome(name: str, check: str) -> BaseException | None:
    """What a check raised, None if it passed; each is run once."""
    try:
        CHECKS[check](name)
    except Exception as error:
        return error
    return None


@cache
def reason(name: str) -> str:
    """Why a model is refused; an empty string if it is not."""
    try:
        check_supported(REFUSED[name][0]())
    except UnsupportedModelError as error:
        return str(error)
    return ""


def _windows(name: str) -> str:
    kinds = layer_masks(tiny_model(name)).kinds
    if SLIDING not in kinds:
        return "none"
    return "every layer" if kinds == {SLIDING} else "some layers"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """The whole page."""
    lines = [HEADER, _row("architecture", "sliding windows", *CHECKS), _row(*["---"] * (2 + len(CHECKS)))]
    for name in ARCHITECTURES:
        found = ("yes" if outcome(name, check) is None else "**no**" for check in CHECKS)
        lines.append(_row(f"{type(tiny_model(name)).__name__}", _windows(name), *found))
    lines += ["", "## Refused", "", _row("model", "what it is told"), _row("---", "---")]
    lines += [_row(name, reason(name) or "**accepted**") for name in REFUSED]
    return "\n".join(lines) + "\n"
