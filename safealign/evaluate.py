"""`python -m safealign.evaluate model=outputs/x/export suite=table baselines=[undefended,plain_sft]`."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from safealign.commands import run_command
from safealign.config.roots import EvaluateConfig
from safealign.sweep import gather


def main(config: EvaluateConfig) -> None:
    """Measures an export beside its baselines; the report goes to `run_dir/report`."""
    from safealign.training.evaluating import evaluate
    from safealign.training.quiet import quiet

    quiet()  # baselines may have to be trained
    console = Console()
    evaluate(config, console, " ".join(["python -m safealign.evaluate", *sys.argv[1:]]))
    console.print(f"\nReport: {Path(str(config.run_dir)) / 'report' / 'summary.md'}", highlight=False)


if __name__ == "__main__":
    sys.exit(run_command(main, "evaluate", after_sweep=gather))
