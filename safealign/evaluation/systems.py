"""The systems that stand side by side in a table: a model and the decoding options that make it one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from safealign.model import SafeModel
from safealign.modeling.identity import guarded_digest

UNDEFENDED, OURS, PLAIN_SFT = "undefended", "safealign", "plain SFT"


@dataclass(frozen=True)
class System:
    """`options`: keywords of `generate` that differ from the model's own. `note` says what the row is."""

    name: str
    model: SafeModel
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def key(self) -> str:
        """Name as a file name."""
        return "".join(c if c.isalnum() else "_" for c in self.name.lower())

    @cached_property
    def weights(self) -> str:
        """Digest of the model and its safety parts, which do not change while systems are measured."""
        return guarded_digest(self.model.hf)

    @property
    def guarded(self) -> bool:
        """Whether any safety row is evaluated at all."""
        return self.model.parts is not None and bool(self.options.get("safety", True))


def ablations(ours: System, changes: Mapping[str, Mapping[str, Any]]) -> list[System]:
    """Rows that take our parts away: the same model under other decoding options.

    Those that this model has nothing to lose by, or cannot be decoded with, are left out.
    """
    own = ours.model.options.override(ours.options)
    found = []
    for name, change in changes.items():
        row = System(name, ours.model, {**ours.options, **change}, "without a part")
        options = ours.model.options.override(row.options)
        if options != own and ours.model.misfit(options) is None:
            found.append(row)
    return found
