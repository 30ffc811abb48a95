"""Fixtures of the server tests; the helper module of this folder (`servers`) imports by its name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from servers import CALM, STRICT, Running, build, serving


@pytest.fixture(scope="module")
def calm() -> Iterator[Running]:
    """A server that never intervenes."""
    with serving(build(CALM), "decoding.max_new_tokens=8") as running:
        yield running


@pytest.fixture(scope="module")
def strict() -> Iterator[Running]:
    """A server that refuses everything, with the trigger."""
    with serving(build(STRICT), "decoding.max_new_tokens=64") as running:
        yield running
