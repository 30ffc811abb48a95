"""One figure of a table: value, count, interval; from any metric, to JSON and to text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cell:
    """A value with the number of rows behind it, its interval, and for a rate the number of successes.

    A value or an end of the interval that is not a finite number is None.
    """

    value: float | None
    n: int | None = None
    interval: tuple[float | None, float | None] | None = None
    k: int | None = None

    @classmethod
    def of(cls, figure: Any) -> Cell:
        """From a metric with `to_dict`, such a dictionary, or a bare number (then without an interval)."""
        if isinstance(figure, Cell):
            return figure
        if figure is None or isinstance(figure, int | float):
            return cls(_finite(figure))
        plain: Mapping[str, Any] = figure if isinstance(figure, Mapping) else figure.to_dict()
        ends = plain.get("interval")
        interval = None if ends is None else (_finite(ends[0]), _finite(ends[1]))
        return cls(_finite(plain["value"]), plain.get("n"), interval, plain.get("k"))

    def to_dict(self) -> dict[str, Any]:
        """`value`, `n`, `interval`, and `k` for a rate."""
        plain: dict[str, Any] = {"value": self.value, "n": self.n}
        plain["interval"] = None if self.interval is None else list(self.interval)
        return plain if self.k is None else plain | {"k": self.k}

    def text(self, style: str = "rate", interval: bool = True) -> str:
        """ "1.2 % (1/80; 0.2–6.7)" for a rate, "2.31 (n=80; 2.20–2.42)" for a number, "–" for nothing."""
        if self.value is None:
            return "–"
        number = rate_text if style == "rate" else number_text
        shown = f"{number(self.value)} %" if style == "rate" else number(self.value)
        inside = [self._count()] if self.n is not None else []
        if interval and self.interval and None not in self.interval:
            inside.append("–".join(number(end) for end in self.interval if end is not None))
        return f"{shown} ({'; '.join(inside)})" if inside else shown

    def _count(self) -> str:
        return f"n={self.n}" if self.k is None else f"{self.k}/{self.n}"


def rate_text(value: float) -> str:
    """A share in per cent with one decimal, without the sign."""
    return f"{100 * value:.1f}"


def number_text(value: float) -> str:
    """Three significant places where they matter: 0.993, 2.31, 41.8, 410."""
    places = 3 if abs(value) < 2 else 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{places}f}"


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
