"""`python -m safealign.validate +recipe=llama_lora`: every config and data error at once, nothing trained."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape

from safealign.commands import USER_ERROR, run_command
from safealign.config.roots import TrainConfig


def main(config: TrainConfig | None, problems: list[str]) -> int:
    """Prints what was found, one example token by token, and an estimate; 2 when anything is wrong."""
    console = Console()
    found = [*problems, *(_problems(config, console) if config is not None else [])]
    if not found:
        console.print("[green]no problem found[/]; nothing was trained")
        return 0
    console.print(f"[bold red]{len(found)} problem(s)[/]", highlight=False)
    for line in found:
        console.print(f"  - {escape(line)}", highlight=False, soft_wrap=True)
    return USER_ERROR


def _problems(config: TrainConfig, console: Console) -> list[str]:
    from safealign.training.quiet import quiet

    quiet()
    if config.objective.name == "pretraining":
        from safealign.training.validating_documents import validate_documents

        return validate_documents(config, console)
    if config.objective.name == "srr":
        from safealign.training.validating_ranker import validate_ranker

        return validate_ranker(config, console)
    from safealign.training.validating import validate

    return validate(config, console)


if __name__ == "__main__":
    sys.exit(run_command(main, record=False, tolerant=True))
