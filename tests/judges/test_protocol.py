"""The Guard protocol is structural."""

from __future__ import annotations

from safealign.judges.protocol import Guard


class Always:
    """A guard that objects to everything."""

    def score(self, prompt: str, response: str | None = None) -> float:
        """Probability one."""
        return 1.0


def test_any_scorer_is_a_guard() -> None:
    assert isinstance(Always(), Guard)
    assert not isinstance("text", Guard)
