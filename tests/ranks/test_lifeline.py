"""Ranks that miss each other: who ends without a goodbye is named to all others, who says goodbye is not missed."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from safealign.errors import DataError, PreemptedError, RankError
from safealign.ranks import Ranks, World
from safealign.ranks.connecting import _listening, connect
from safealign.ranks.joining import joined
from safealign.ranks.lifeline import LOST_VARIABLE, Lifeline

SOON = 10.0  # seconds in which a verdict must have come


class Star:
    """Rank 0's line to `others`, whose ends are plain sockets that say what a test lets them say."""

    def __init__(self, others: int, grace: float = 60.0) -> None:
        self.ended: list[str] = []
        self.far: dict[int, socket.socket] = {}
        near = {}
        with socket.create_server(("127.0.0.1", 0)) as server:
            for rank in range(1, others + 1):
                self.far[rank] = socket.create_connection(server.getsockname())
                near[server.accept()[0]] = f"rank {rank}"
        self.line = Lifeline(World(0, 0, others + 1), near, self.ended.append, grace)

    def heard(self, rank: int) -> str:
        """The next line that this rank gets."""
        self.far[rank].settimeout(SOON)
        return self.far[rank].makefile(encoding="utf-8").readline().strip()


@pytest.fixture
def star() -> Iterator[Callable[..., Star]]:
    """Makes stars, and lets go of them."""
    made: list[Star] = []

    def make(others: int, grace: float = 60.0) -> Star:
        made.append(Star(others, grace))
        return made[-1]

    yield make
    for one in made:
        one.line.close()
        for peer in one.far.values():
            peer.close()


def test_who_is_cut_off_is_named_to_all_others(star: Callable[..., Star]) -> None:
    job = star(3)
    job.far[2].close()
    found = job.line.verdict(SOON)
    assert found.startswith("rank 2 has ended without a word") and "last whole checkpoint" in found
    assert job.heard(1) == job.heard(3) == found


def test_who_says_goodbye_is_not_missed(star: Callable[..., Star]) -> None:
    job = star(2)
    job.far[1].sendall(b"bye\n")
    job.far[1].close()
    assert job.line.verdict(1.5) == ""
    job.far[2].close()  # and those that remain still are
    assert job.line.verdict(SOON).startswith("rank 2 ")


def test_who_said_goodbye_still_hears_and_the_last_goodbye_ends_no_line(star: Callable[..., Star]) -> None:
    job = star(2)
    for far in job.far.values():
        far.sendall(b"bye\n")
    job.far[1].settimeout(1.5)
    with pytest.raises(TimeoutError):
        job.far[1].recv(1)
    job.far[2].close()
    job.line.tell("rank 0 failed: the disk is full")
    assert job.heard(1) == "rank 0 failed: the disk is full" and job.line.verdict() == ""


def test_an_idle_rank_is_missed_by_nobody_and_misses_rank_zero() -> None:
    """All others wait for rank 0's last word while it calibrates and exports."""
    store = torch.distributed.HashStore()
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = socket.create_connection(server.getsockname())
        zero = server.accept()[0]
    line = Lifeline(World(1, 1, 2), {peer: "rank 0"}, lambda sentence: None)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(Ranks(World(1, 1, 2), store, line).finish)
        zero.settimeout(SOON)
        assert zero.recv(64) == b"bye\n" and not waiting.done()
        zero.close()
        with pytest.raises(RankError, match="rank 0 has ended without a word"):
            waiting.result(SOON)
    line.close()


def test_a_sentence_reaches_all_others_and_the_first_one_stays(star: Callable[..., Star]) -> None:
    job = star(2)
    job.far[1].sendall("rank 1 failed: the disk is full: café".encode()[:-1])
    time.sleep(0.1)
    job.far[1].sendall("é".encode()[-1:] + b"\n")  # a line may come in pieces
    assert job.line.verdict(SOON) == job.heard(2) == "rank 1 failed: the disk is full: café"
    job.far[2].close()
    assert job.line.verdict() == "rank 1 failed: the disk is full: café"


def test_a_main_thread_that_never_wakes_up_is_ended_and_one_that_does_is_not(star: Callable[..., Star]) -> None:
    asleep, awake = star(1, grace=0.2), star(1, grace=1.0)
    asleep.far[1].close()
    awake.far[1].close()
    assert awake.line.verdict(SOON)
    awake.line.close()
    until = time.monotonic() + SOON
    while not asleep.ended and time.monotonic() < until:
        time.sleep(0.05)
    assert asleep.ended == [asleep.line.verdict()]
    time.sleep(1.2)
    assert awake.ended == []


def lines(size: int) -> list[Lifeline]:
    """Real lines between threads that call themselves ranks."""
    store = torch.distributed.HashStore()
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: connect(World(rank, rank, size), store, SOON), range(size)))


def test_a_failing_rank_is_heard_by_all_others_and_not_by_itself() -> None:
    found = lines(3)
    try:
        found[2].tell("rank 2 failed:\nthe disk\tis full")
        assert [line.verdict(SOON) for line in found[:2]] == ["rank 2 failed: the disk is full"] * 2
        assert found[2].verdict() == ""
    finally:
        for line in found:
            line.close()


def test_ranks_that_part_in_any_order_hear_nothing() -> None:
    found = lines(4)
    for rank in (2, 0, 3, 1):
        time.sleep(0.1)
        found[rank].close()
    assert [line.verdict(0.3) for line in found] == [""] * 4


def test_a_stranger_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safealign.ranks.callers.PATIENCE", 0.3)
    store = torch.distributed.HashStore()
    world = [World(rank, rank, 2) for rank in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(connect, world[0], store, SOON)
        port = json.loads(store.get("lifeline"))["port"]
        for text in (b"GET / HTTP/1.1\n", b'{"secret": "guess", "rank": 1, "name": "rank 1"}\n', b"7\n", b"[" * 4000):
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(text)
                stranger.settimeout(SOON)
                assert _is_over(stranger)
        second = connect(world[1], store, SOON)
        assert first.result().verdict() == second.verdict() == ""
    first.result().close()
    second.close()


def _is_over(peer: socket.socket) -> bool:
    try:
        return peer.recv(1) == b""
    except ConnectionResetError:  # closed with something unread
        return True


def test_silent_strangers_hold_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safealign.ranks.callers.AT_ONCE", 4)
    store, started = torch.distributed.HashStore(), time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(connect, World(0, 0, 2), store, SOON)
        where = json.loads(store.get("lifeline"))
        strangers = [socket.create_connection(("127.0.0.1", where["port"])) for _ in range(6)]
        strangers[-1].sendall(where["secret"].encode()[:-1])
        second = connect(World(1, 1, 2), store, SOON)
        found = first.result()
    assert time.monotonic() - started < 4 and found.verdict() == second.verdict() == ""
    for stranger in strangers:
        stranger.settimeout(SOON)
        assert _is_over(stranger)
        stranger.close()
    second.tell("rank 1 failed: the disk is full")
    assert found.verdict(SOON) == "rank 1 failed: the disk is full"
    found.close()
    second.close()


@pytest.mark.parametrize(
    ("address", "inside"), [("127.0.0.1", True), ("localhost", True), ("10.1.2.3", False), ("node1", False)]
)
def test_only_this_machine_is_heard_where_all_ranks_are_on_it(address: str, inside: bool) -> None:
    with _listening(address) as listener:
        assert ipaddress.ip_address(listener.getsockname()[0]).is_loopback == inside


def test_who_has_met_and_then_hears_nothing_of_rank_zero_says_so() -> None:
    store = torch.distributed.HashStore()
    store.set_timeout(timedelta(seconds=0.2))
    with pytest.raises(RankError, match="has rank 0 ended"):
        connect(World(1, 1, 2), store, SOON)


def test_a_rank_that_does_not_call_is_named() -> None:
    with pytest.raises(RankError, match=r"ranks \[1, 2\] to connect"):
        connect(World(0, 0, 3), torch.distributed.HashStore(), 0.3)


@pytest.mark.parametrize("value", ["soon", "0", "-3", "nan", "1e9"])
def test_a_time_that_is_none_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOST_VARIABLE, value)
    with pytest.raises(RankError, match=f"{LOST_VARIABLE}={value}"):
        Lifeline(World(), {})


DYING = """
import os, socket, sys, time
from safealign.ranks.lifeline import Lifeline
from safealign.ranks.world import World
peer = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
line = Lifeline(World(1, 1, 2), {peer: "rank 0"})
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
time.sleep(60)
"""


def test_a_child_of_a_dead_rank_does_not_keep_its_line_open(root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        line = [sys.executable, "-c", DYING, str(server.getsockname()[1])]
        process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=root)
        near = server.accept()[0]
    assert process.stdout is not None
    child = int(process.stdout.readline())
    job = Lifeline(World(0, 0, 2), {near: "rank 1"}, lambda sentence: None)
    try:
        process.kill()
        process.wait()
        assert job.verdict(SOON).startswith("rank 1 has ended without a word")
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()
        job.close()


@pytest.fixture
def rank_zero(star: Callable[..., Star], monkeypatch: pytest.MonkeyPatch) -> Star:
    """`joined` makes this process rank 0 of two, with the line of this star."""
    job, store = star(1), torch.distributed.HashStore()
    store.add("left", 1)  # the other rank's
    monkeypatch.setattr("safealign.ranks.joining.read_world", lambda: World(0, 0, 2))
    monkeypatch.setattr("safealign.ranks.joining._meet", lambda world: store)
    monkeypatch.setattr("safealign.ranks.joining._join_group", lambda *rest: None)
    monkeypatch.setattr("safealign.ranks.Ranks.agree", lambda *rest: None)
    monkeypatch.setattr("safealign.ranks.joining.connect", lambda *rest: job.line)
    return job


@pytest.mark.parametrize(("raised", "seen"), [(RuntimeError, RankError), (KeyError, KeyError)])
def test_a_broken_collective_is_told_by_the_rank_that_broke_it(
    raised: type[Exception], seen: type[Exception], rank_zero: Star
) -> None:
    """What torch raises becomes the sentence; an error of this rank's own stays what it is."""
    told = threading.Timer(0.3, rank_zero.far[1].close)
    told.start()
    with pytest.raises(seen) as caught, joined({}):
        raise raised("Connection closed by peer")
    told.join()
    if seen is RankError:
        assert "stopped, because rank 1 has ended without a word" in str(caught.value)


@pytest.mark.parametrize(
    ("raised", "heard"), [(PreemptedError("saved"), "bye"), (DataError("row 3 is bad"), "rank 0 of 2")]
)
def test_a_rank_that_saved_and_stopped_has_not_failed(raised: Exception, heard: str, rank_zero: Star) -> None:
    """The others are saving too, and must not be ended in the midst of it."""
    with pytest.raises(type(raised)), joined({}):
        raise raised
    said = rank_zero.heard(1)
    assert said.startswith(heard) and ("failed: row 3 is bad" in said) == (heard != "bye")
