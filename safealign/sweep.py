"""`python -m safealign.sweep folder=outputs/llama_lora-sweep`: all runs of a sweep in one table and one picture."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from safealign.commands import run_command
from safealign.config.roots import SweepConfig


def main(config: SweepConfig) -> None:
    """Prints the table and writes it with the picture to `folder/report/`."""
    gather(Path(config.folder), config.system)


def gather(folder: Path, system: str = "safealign") -> None:
    """Gathers the runs below `folder`; what a sweep of `-m` ends with."""
    from safealign.reporting.sweep_picture import sweep_picture
    from safealign.reporting.sweep_table import SweepTable

    console = Console()
    table = SweepTable.gather(folder, system)
    table.show(console)
    written = table.write(folder / "report")
    picture = sweep_picture(table, folder / "report" / "sweep.png")
    for path in [*written, picture]:
        if path is not None:
            console.print(f"Sweep:   {path}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(run_command(main, "sweep"))
