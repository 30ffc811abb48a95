"""Preferences after fine-tuning, and a stream of documents, as commands on two ranks; one is killed and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from curves import command
from dying_jobs import losses

import safealign
from safealign.training.checkpoints.store import whole

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]
HELLO = [{"role": "user", "content": "Hello there"}]


def test_both_stages_end_in_one_export(overrides: list[str], tmp_path: Path) -> None:
    own = [item for item in overrides if not item.startswith("+recipe")]
    run_dir = tmp_path / "job"
    argv = ["+recipe=llama_sft_dpo", *own, "data.max_length=220", f"run_dir={run_dir}"]
    statuses, logs = command(tmp_path, argv, ranks=2)
    assert statuses == [0, 0], logs
    assert logs[0].count("exported and verified") == 1 and "exported" not in logs[1]
    assert 0.0 <= safealign.load(run_dir / "export").score(HELLO) <= 1.0
    stages = [row["stage"] for row in losses(run_dir) if "loss" in row]
    assert set(stages) == {"sft", "dpo"} and stages == sorted(stages, reverse=True)


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A job on a stream that ends, and begins again, within its ten steps."""
    rows = [{"text": f"The lamp of cape {i} turns. " * (1 + i % 4)} for i in range(42)]
    for i, row in enumerate(rows):
        row |= {"label": ("benign", "malicious")[i % 2]} if i % 3 else {}
    path = tmp_path_factory.mktemp("documents") / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    source = f"data.documents.sources=[{{source: '{path}'}}]"
    more = ["data.documents.streaming=true", "data.documents.shuffle_buffer=8", "data.max_length=96", "offline=true"]
    steps = ["trainer.batch_size=2", "trainer.max_steps=10", "trainer.save_steps=2", "trainer.logging_steps=1"]
    return ["+recipe=llama_pretrain", "debug=smoke", "model=tiny_random", source, *more, *steps]


@pytest.fixture(scope="module")
def alone(stream: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("alone")
    statuses, logs = command(folder, [*stream, f"run_dir={folder / 'job'}"], ranks=2)
    assert statuses == [0, 0], logs
    return folder / "job"


def test_the_run_is_summed_up(alone: Path) -> None:
    (stage,) = json.loads((alone / "training.json").read_text(encoding="utf-8"))["stages"]
    assert stage["steps"] == 10 and 0.0 < stage["communication_share"] < 1.0 and stage["tokens_per_second"] > 0


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stream_goes_on_within_an_epoch(stream: list[str], alone: Path, tmp_path: Path, rank: int) -> None:
    """With the losses that it would have had, to 1e-6: each rank finds its place in its shard again."""
    run_dir = tmp_path / "job"
    statuses, _ = command(tmp_path, [*stream, f"run_dir={run_dir}"], ranks=2, die={rank: ("step", 6)})
    assert statuses[rank] == -9 and statuses[1 - rank] != 0
    assert whole(run_dir / "checkpoints" / "step-4").step == 4
    statuses, logs = command(tmp_path, [*stream, f"run_dir={run_dir}"], ranks=2)
    assert statuses == [0, 0], logs
    assert "going on from" in logs[0]
    expected, found = losses(alone), losses(run_dir)
    assert [row["step"] for row in found if "loss" in row] == list(range(1, 11))
    for one, other in zip(expected, found, strict=True):
        assert other == pytest.approx(one, abs=1e-6)
