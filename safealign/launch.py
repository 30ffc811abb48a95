"""`python -m safealign.launch plan=h100 model=llama3_8b`: the run's command, memory and hours; starts nothing."""

from __future__ import annotations

import re
import sys

from rich.console import Console

from safealign.commands import run_command
from safealign.config.composing import compose
from safealign.config.roots import LaunchConfig, TrainConfig

_OURS = re.compile(r"\+{0,2}plan(?:[.=]|$)")


def plan_and_training(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments that describe the cluster, and those of the training command."""
    ours = [item for item in arguments if _OURS.match(item)]
    return ours, [item for item in arguments if not _OURS.match(item)]


def main(training: TrainConfig, ours: list[str], overrides: list[str]) -> int:
    """Prints the plan of this training run; 1 when it does not fit."""
    from safealign.training.estimating.plan import make_plan, show

    config: LaunchConfig = compose(ours, "launch")
    plan = make_plan(training, config.plan, overrides)
    show(plan, Console())
    return 1 if plan.problem else 0


if __name__ == "__main__":
    ours_, overrides_ = plan_and_training(sys.argv[1:])
    sys.exit(run_command(lambda config: main(config, ours_, overrides_), argv=overrides_, record=False))
