"""Attacks by name; one file each, behind one small protocol."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from safealign.errors import ConfigError
from safealign.evaluation.attacks.direct import DirectAttack
from safealign.evaluation.attacks.prefill import PrefillAttack
from safealign.evaluation.attacks.protocol import Attack
from safealign.evaluation.attacks.second_turn import SecondTurnAttack
from safealign.evaluation.attacks.wrapped import WrappedAttack

__all__ = ["ATTACKS", "Attack", "DirectAttack", "PrefillAttack", "SecondTurnAttack", "WrappedAttack", "build_attack"]

ATTACKS: Mapping[str, Callable[..., Attack]] = MappingProxyType(
    {"direct": DirectAttack, "second_turn": SecondTurnAttack, "prefill": PrefillAttack, "wrapped": WrappedAttack}
)


def build_attack(name: str, **options: Any) -> Attack:
    """The attack `name` with its options (prefill: k, tokenizer; wrapped: templates, max_words, seed).

    Raises:
        ConfigError: there is no such attack; the nearest name is offered.
    """
    if name not in ATTACKS:
        close = difflib.get_close_matches(name, ATTACKS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(ATTACKS)}"
        raise ConfigError(f"attack: no attack is called {name!r}; {hint}")
    return ATTACKS[name](**options)
