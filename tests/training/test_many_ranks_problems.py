"""What several processes, or DeepSpeed, cannot train yet is said before anything is done; the rest is not refused."""

from __future__ import annotations

import pytest

from safealign.config import compose
from safealign.training.checks import config_problems

STREAM = ["data.documents.streaming=true", "trainer.max_steps=10"]


@pytest.mark.parametrize(
    "overrides", [["+recipe=llama_dpo"], ["+recipe=llama_sft_dpo"], ["+recipe=llama_pretrain", *STREAM]]
)
def test_every_objective_trains_on_two_ranks_as_on_one(monkeypatch: pytest.MonkeyPatch, overrides: list[str]) -> None:
    found = []
    for ranks in ("1", "2"):
        monkeypatch.setenv("WORLD_SIZE", ranks)
        found.append(config_problems(compose([*overrides, "suite=none"])))
    assert found == [[], []]


def test_documents_are_refused_under_deepspeed() -> None:
    problems = config_problems(compose(["+recipe=llama_pretrain", "deepspeed=zero2"]))
    assert [problem for problem in problems if problem.startswith("objective=pretraining trains without DeepSpeed")]
