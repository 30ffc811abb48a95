"""`python -m safealign.export run=outputs/x merge=true|false`: writes a run's export again."""

from __future__ import annotations

import sys

from rich.console import Console

from safealign.commands import run_command
from safealign.config.roots import ExportConfig


def main(config: ExportConfig) -> None:
    """Writes the export anew, merged or as an adapter, and verifies it by loading it."""
    from safealign.training.reexport import reexport

    folder = reexport(config)
    Console().print(f"exported and verified: {folder}", highlight=False)


if __name__ == "__main__":
    sys.exit(run_command(main, "export"))
