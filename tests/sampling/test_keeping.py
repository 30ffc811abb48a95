"""The cache of sampled texts: portions survive a kill at any byte, damage is named, two processes do not mix."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from safealign.data.records import BENIGN, Message, Record
from safealign.errors import DataError
from safealign.sampling.keeping import Portions, cached, read_cache

RECORD = Record((Message("user", "Fold it"), Message("assistant", "Done.")), BENIGN, id="a")


def test_a_portion_is_there_for_whoever_opens_the_file_next(tmp_path: Path) -> None:
    Portions(tmp_path / "x").put("first", [(1, 2), (), (3,)])
    again = Portions(tmp_path / "x")
    assert again.get("first") == [(1, 2), (), (3,)] and again.get("second") is None and not again.torn


def test_killed_at_any_byte_whole_portions_stay_and_the_torn_one_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "x"
    written = {"one": [(1, 2)], "two": [(3,)], "three": [(4, 5, 6)]}
    for digest, answers in written.items():
        Portions(path).put(digest, answers)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        found = Portions(path)
        done = sum(end <= cut for end in ends)
        assert [found.get(name) for name in written] == [*list(written.values())[:done], *[None] * (3 - done)]
        assert found.torn == (cut not in (0, *ends))
        found.put("next", [(7,)])
        again = Portions(path)
        assert not again.torn and again.get("next") == [(7,)]


def test_damage_before_the_last_line_is_named_by_file_and_row_without_its_text(tmp_path: Path) -> None:
    path = tmp_path / "x.partial"
    path.write_bytes(b'{"portion": "a", "tokens": [[1]]}\n{"portion": "b", "tokens": [["secret"]]}\n{}\n')
    with pytest.raises(DataError, match=r"x\.partial:2 is damaged: delete the file") as raised:
        Portions(path)
    assert "secret" not in str(raised.value)


def test_a_torn_portion_is_told(tmp_path: Path) -> None:
    (tmp_path / "job.partial").write_bytes(b'{"portion": "a", "tok')
    told: list[str] = []
    assert cached(tmp_path, "job", lambda kept: [RECORD], told.append) == [RECORD]
    assert len(told) == 1 and "job.partial" in told[0]


def test_what_is_finished_leaves_one_file(tmp_path: Path) -> None:
    def make(kept: Portions) -> list[Record]:
        kept.put("a", [(1,)])
        return [RECORD]

    cached(tmp_path / "new", "job", make)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["job.jsonl"]
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0, "harmful text is for its owner alone"
    assert len(read_cache(tmp_path / "new" / "job.jsonl")) == 1


def test_of_two_that_want_the_same_one_makes_it_and_the_other_waits(tmp_path: Path) -> None:
    made: list[int] = []

    def make(kept: Portions) -> list[Record]:
        made.append(1)
        time.sleep(0.2)
        return [RECORD]

    found: list[list[Record]] = []
    threads = [threading.Thread(target=lambda: found.append(cached(tmp_path, "job", make))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and [records[0].messages for records in found] == [RECORD.messages] * 3
