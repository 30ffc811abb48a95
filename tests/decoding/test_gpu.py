"""On a GPU: the engine equals the reference in fp32, and keeps its tolerance in half precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_equivalence import OFF, check
from worlds import make_world

from safealign.decoding import DecodingOptions

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none"),
]


@pytest.fixture
def world() -> Any:
    made = make_world()
    made.lm.cuda()
    return made


@pytest.mark.parametrize("dependency", ["low", "medium", "high"])
def test_the_engine_equals_the_reference(world: Any, with_options: Any, dependency: str) -> None:
    check(world, with_options(dependency=dependency, r2=4, r1=12), 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_decodes_every_row_to_its_end(world: Any, dtype: torch.dtype) -> None:
    world.lm.to(dtype)
    for module in (world.parts.token, world.parts.head, world.parts.token_head):
        module.float()
    options = DecodingOptions(schedule="every", max_new_tokens=24, theta_query=None, theta_window=None)
    rows = world.decoder(options, OFF, ()).decode(world.prompts(), range(6))
    assert all(len(row.tokens) == 24 and torch.tensor([e.logit for e in row.trace]).isfinite().all() for row in rows)
