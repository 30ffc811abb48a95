"""Which architectures are supported: each check on each, what is refused and why, and the table of both."""

from __future__ import annotations

import pytest
from checks import CHECKS

from safealign.modeling.tiny import ARCHITECTURES


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_supported(name: str, check: str) -> None:
    CHECKS[check](name)
