"""`python -m safealign.launch`: the command it prints, figures with their arithmetic, and an honest refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.scaling import table
from safealign.commands import run_command
from safealign.launch import main, plan_and_training


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit status and what was printed, in one line."""
    ours, overrides = plan_and_training(list(arguments))
    status = run_command(lambda config: main(config, ours, overrides), argv=overrides, record=False)
    shown = capsys.readouterr()
    return status, " ".join((shown.out + shown.err).split())


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["plan.gpus=1", "+recipe=llama_lora"], "RECIPE=llama_lora launch/single_gpu.sh model=llama3_8b"),
        (["deepspeed=zero2"], "GPUS=8 launch/multi_gpu.sh model=llama3_8b deepspeed=zero2"),
        (["plan.nodes=4"], "HOSTFILE=hostfile launch/multi_node.sh model=llama3_8b"),
    ],
)
def test_the_command_is_that_of_the_cluster(
    capsys: pytest.CaptureFixture[str], arguments: list[str], command: str
) -> None:
    status, shown = plan(capsys, "plan=h100", "model=llama3_8b", *arguments)
    assert status == 0 and f"command {command}" in shown


def test_every_figure_is_an_estimate_with_its_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    _, shown = plan(capsys, "plan=a100", "model=llama3_8b", "deepspeed=zero2", "plan.examples=10000")
    assert "memory of one GPU, estimate" in shown and "hours, estimate" in shown
    assert "8.03 G × 2 B" in shown and "41.9 M × 2 B / 8 GPUs" in shown and "157 steps" in shown


def test_what_does_not_fit_is_said_with_a_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    status, shown = plan(capsys, "model=llama3_8b", "adapter=none")
    assert status == 1 and "does not fit" in shown and "deepspeed=zero3" in shown
    status, shown = plan(capsys, "model=meta-llama/Meta-Llama-3-70B-Instruct", "plan.nodes=8", "deepspeed=zero3")
    assert status == 1 and "every process loads the whole model (141 GB)" in shown


def test_mistakes_in_either_half_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    status, shown = plan(capsys, "plan.nodez=2")
    assert status == 2 and "did you mean 'plan.nodes'" in shown
    status, shown = plan(capsys, "trainer.epoch=2")
    assert status == 2 and "did you mean 'trainer.epochs'" in shown


def test_the_documents_table_is_what_the_estimator_says(root: Path) -> None:
    assert table() in (root / "docs" / "scaling.md").read_text(encoding="utf-8")
