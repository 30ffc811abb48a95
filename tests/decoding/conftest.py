"""Fixtures of the decoding tests; helper modules of this folder (`worlds`, `scripted`) import by their names."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))

from worlds import TRIGGER, World, make_world

from safealign.decoding import DecodingOptions


@pytest.fixture(scope="session")
def world() -> World:
    return make_world()


@pytest.fixture
def options() -> DecodingOptions:
    return DecodingOptions(schedule="every", max_new_tokens=24, trigger=TRIGGER, refusal="No.")


@pytest.fixture
def with_options(options: DecodingOptions) -> Any:
    return lambda **changes: replace(options, **changes)
