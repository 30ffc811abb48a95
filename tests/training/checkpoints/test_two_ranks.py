"""Two ranks, one checkpoint: each rank's random state in it, all ranks stop for the same reason, all go on alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from two_ranks import run

from safealign.training.checkpoints.store import whole

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("alone") / "job"
    assert run(folder) == [0, 0], (folder / "log-0").read_text()[-3000:]
    return folder


def _losses(folder: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def _ends(folder: Path) -> list[dict[str, torch.Tensor]]:
    read = torch.load
    return [read(folder / f"end-{rank}.pt", weights_only=True) for rank in (0, 1)]


def _assert_same(found: Path, expected: Path) -> None:
    assert [step for step, _ in _losses(found)] == list(range(1, 8))
    for (_, one), (_, other) in zip(_losses(found), _losses(expected), strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    reference = _ends(expected)[0]
    for end in _ends(found):
        assert all(torch.equal(value, reference[name]) for name, value in end.items())


def test_every_ranks_random_state_is_in_the_checkpoint_and_its_weights_are_the_live_ones(alone: Path) -> None:
    checkpoint = whole(alone / "checkpoints" / "step-7").path
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in checkpoint.iterdir()}
    saved = load_file(checkpoint / "adapter_model.safetensors")
    live = {name: value for name, value in _ends(alone)[1].items() if ".lora_" in name}
    assert len(saved) == len(live) > 0
    for name, value in saved.items():
        assert value.numel() and torch.equal(value, live[name.replace(".weight", ".default.weight")])
    token = load_file(checkpoint / "safety.safetensors")["token.weight"]
    assert any(torch.equal(token, value) for name, value in _ends(alone)[0].items() if "safety_token.modules" in name)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_whose_rank_was_killed_goes_on_as_if_it_was_not(alone: Path, tmp_path: Path, rank: int) -> None:
    folder = tmp_path / "job"
    statuses = run(folder, die={rank: 3})
    assert statuses[rank] == -9 and statuses[1 - rank] != 0
    assert run(folder) == [0, 0], (folder / "log-0").read_text()[-3000:]
    assert "going on from" not in (folder / "log-0").read_text() or _losses(folder)
    _assert_same(folder, alone)


def test_sigterm_to_one_rank_saves_on_all(alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    assert run(folder, term={1: 2}) == [75, 75], (folder / "log-1").read_text()[-3000:]
    assert whole(folder / "checkpoints" / "step-3").step == 3
    assert run(folder) == [0, 0]
    _assert_same(folder, alone)


def test_a_full_disk_on_one_rank_stops_all_with_the_last_checkpoint(alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    # Rank 1 writes nothing but its random state: the second of them fails.
    assert run(folder, full={1: 1}) == [2, 2]
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-2"]
    assert "the disk is full" in (folder / "log-1").read_text()
    assert "another rank says why" in (folder / "log-0").read_text()
    assert run(folder) == [0, 0]
    _assert_same(folder, alone)


def test_one_ranks_nan_stops_all_and_the_ids_are_that_ranks(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    assert run(folder, nan={1: 3}) == [2, 2]
    rows = [json.loads(line) for line in (folder / "nonfinite.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {(row["rank"], row["what"]) for row in rows} >= {(1, "loss")}
    assert all(row["step"] == 4 and row["ids"] for row in rows)


def test_one_ranks_nan_is_skipped_by_all(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    assert run(folder, config={"on_nonfinite": "skip"}, nan={1: 3}) == [0, 0]
    one, other = _ends(folder)
    assert all(torch.equal(value, other[name]) and torch.isfinite(value).all() for name, value in one.items())


def test_another_number_of_ranks_is_refused_with_the_way_out(alone: Path) -> None:
    (status,) = run(alone, world=1)
    assert status == 2
    text = (alone / "log-0").read_text()
    assert "was written by 2 process(es), and this run has 1" in text and "Start it with 2" in text
