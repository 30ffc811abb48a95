"""What several processes cannot train yet is said before anything is done."""

from __future__ import annotations

import pytest

from safealign.config import compose
from safealign.training.checks import config_problems


@pytest.mark.parametrize(
    ("overrides", "said"),
    [(["+recipe=llama_pretrain"], "objective=pretraining")],
)
def test_it_is_refused_in_two_processes_and_not_in_one(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], said: str
) -> None:
    config = compose(overrides)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not [problem for problem in config_problems(config) if "one process for now" in problem]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert [problem for problem in config_problems(config) if problem.startswith(said)]
