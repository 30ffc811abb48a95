"""Ranks as threads over one store: they agree or all stop, wait in order, and fail together."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from safealign.errors import DataError, RankError
from safealign.ranks import JobConsole, Ranks, World, current, job_log
from safealign.ranks.joining import flat


def run(size: int, job: Callable[[Ranks], Any]) -> list[Any]:
    """What `job` returns, or raises, on each rank."""
    store = torch.distributed.HashStore()

    def one(rank: int) -> Any:
        try:
            return job(Ranks(World(rank, rank, size), store))
        except RankError as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


def test_equal_settings_are_agreed_on() -> None:
    assert run(3, lambda ranks: ranks.agree("config", flat({"a": {"b": 1, "c": [2]}, "d": {}}))) == [None] * 3


def test_every_rank_stops_with_the_key_that_differs() -> None:
    def job(ranks: Ranks) -> None:
        rate = 0.5 if ranks.world.rank == 1 else 0.25
        ranks.agree("config", flat({"trainer": {"learning_rate": rate, "epochs": 1}, "name": "x"}))

    found = run(3, job)
    assert all(isinstance(error, RankError) for error in found) and len({str(error) for error in found}) == 1
    assert "trainer.learning_rate is 0.5 on rank 1 of 3" in str(found[0]) and "0.25 on rank 0" in str(found[0])


def test_a_key_that_only_one_rank_has_is_named() -> None:
    found = run(2, lambda ranks: ranks.agree("config", {"x": "1"} if ranks.first else {"x": "1", "extra": "2"}))
    assert all("extra is 2 on rank 1" in str(error) and "nothing on rank 0" in str(error) for error in found)


def test_rank_zero_goes_first_and_its_answer_is_everybodys() -> None:
    order: list[int] = []

    def job(ranks: Ranks) -> tuple[int, bool, bool]:
        def make() -> int:
            time.sleep(0.3 if ranks.first else 0.0)
            order.append(ranks.world.rank)
            return ranks.world.rank

        return ranks.first_then_others(make), ranks.only_first(lambda: True), ranks.only_first(lambda: False)

    assert run(3, job) == [(rank, True, False) for rank in range(3)]
    assert order[0] == 0 and sorted(order) == [0, 1, 2]


def test_who_waits_hears_of_a_failure_at_once() -> None:
    def job(ranks: Ranks) -> None:
        if ranks.first:
            ranks.fail("the disk is full")
            return
        ranks.finish()

    started = time.monotonic()
    found = run(2, job)
    assert "rank 0 of 2" in str(found[1]) and "the disk is full" in str(found[1])
    assert time.monotonic() - started < 5


def test_all_wait_for_the_last_word_of_rank_zero() -> None:
    def job(ranks: Ranks) -> float:
        time.sleep(0.5 if ranks.first else 0.0)
        ranks.finish()
        return time.monotonic()

    started = time.monotonic()
    assert all(ended - started >= 0.5 for ended in run(3, job))


def test_a_single_process_needs_no_store() -> None:
    ranks = current()
    ranks.agree("config", {"a": "1"})
    ranks.finish()
    assert ranks.first and not ranks.several and ranks.first_then_others(lambda: 3) == 3


def test_the_log_holds_rank_zeros_lines_and_every_ranks_warnings(tmp_path: Path) -> None:
    with job_log(tmp_path, World(0, 0, 2)):
        JobConsole(first=True, file=io.StringIO()).print("[bold]step[/] 1")
    with pytest.raises(DataError), job_log(tmp_path, World(1, 1, 2)):
        JobConsole(first=False).print("silent")
        logging.getLogger("some.library").warning("careful")
        raise DataError("a row is bad")
    logging.getLogger("some.library").warning("after the end")
    lines = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    told = [line for line in lines if "pytest" not in line]
    assert [" ".join(line.split(" ")[2:]) for line in told][-3:] == [
        "rank 0 INFO step 1",
        "rank 1 WARNING careful",
        "rank 1 ERROR a row is bad",
    ]
    assert "silent" not in json.dumps(lines) and "after the end" not in json.dumps(lines)
