"""`python -m safealign.chat model=outputs/x/export`: talks, and shows p_malicious as it does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from safealign.commands import run_command
from safealign.config.roots import ChatConfig
from safealign.data.records import Message
from safealign.errors import SafealignError

if TYPE_CHECKING:
    from safealign.model import SafeModel
    from safealign.session import Output

HELP = "/trace: every verdict of the last answer · /new: forget the conversation · /quit or Ctrl-D: leave"
_COLOURS = ((0.2, "green"), (0.5, "yellow"), (1.01, "red"))


class Chat:
    """A conversation on the terminal: `say` answers one line and remembers the turn."""

    def __init__(self, model: SafeModel, options: dict[str, Any], console: Console, system: str | None) -> None:
        self.model, self.options, self.console = model, options, console
        self.opening = (Message("system", system),) if system else ()
        self.turns: tuple[Message, ...] = self.opening
        self.last: Output | None = None

    def say(self, line: str) -> None:
        """Streams the answer to `line`; Ctrl-C ends the answer, not the chat, and the turn is forgotten."""
        asked = (*self.turns, Message("user", line))
        try:
            for event in self.model.stream(asked, **self.options):
                self.console.print(Text(event.text), end="", soft_wrap=True)
                self.last = event.output or self.last
                if event.output is not None:
                    self.turns = (*asked, Message("assistant", event.output.text or " "))
        except KeyboardInterrupt:
            self.console.print(Text(" … stopped; this turn is forgotten", style="dim"))
            return
        self.console.print()
        if self.last is not None:
            self.console.print(verdict(self.last))

    def obey(self, command: str) -> bool:
        """Carries out a command; False ends the chat."""
        if command == "/new":
            self.turns, self.last = self.opening, None
            self.console.print(Text("a new conversation", style="dim"))
        elif command == "/trace":
            self.console.print(trace_table(self.last) if self.last else Text("no answer yet", style="dim"))
        elif command != "/quit":
            self.console.print(Text(HELP, style="dim"))
        return command != "/quit"


def main(config: ChatConfig) -> None:
    """Loads the export and reads lines until the end of input."""
    from safealign.model import load

    console = Console(highlight=False)
    if config.threads:
        torch.set_num_threads(config.threads)
    console.print(f"loading {config.model.path}")
    model = load(config.model.path, dtype=config.model.dtype, attn=config.model.attn, offline=config.offline)
    console.print(Text(HELP, style="dim"))
    converse(Chat(model, asdict(config.decoding), console, config.system), lambda: console.input("[bold]you[/] › "))


def converse(chat: Chat, read: Callable[[], str]) -> None:
    """Reads lines from `read` until it raises EOFError or KeyboardInterrupt, or the user quits."""
    while True:
        try:
            line = read().strip()
        except (EOFError, KeyboardInterrupt):
            chat.console.print()
            return
        try:
            if line.startswith("/"):
                if not chat.obey(line):
                    return
            elif line:
                chat.say(line)
        except SafealignError as error:
            chat.console.print(Text(str(error), style="red"))


def verdict(output: Output) -> Text:
    """One line: p of the request, the highest p on the way, and what was done."""
    line = Text("p_malicious ", style="dim")
    if output.p is None:
        return line.append("not looked at (safety is off)")
    line.append(f"{output.p:.3f}", style=colour(output.p))
    windows = [entry.p for entry in output.trace if entry.kind in ("window", "confirm", "prefix")]
    if windows:
        line.append(" · highest window ").append(f"{max(windows):.3f}", style=colour(max(windows)))
    if output.intervened_at is not None:
        line.append(f" · intervened at token {output.intervened_at}", style="bold red")
    return line.append(f" · {output.n_tokens} tokens")


def trace_table(output: Output) -> Table:
    """Every evaluation of the safety token, in order."""
    table = Table("step", "kind", "tokens", "p", "logit", "state", "slot")
    for entry in output.trace:
        span = "request" if entry.span is None else f"{entry.span[0]}–{entry.span[1]}"
        p = Text(f"{entry.p:.3f}", style=colour(entry.p))
        slot = "written" if entry.wrote else ""
        table.add_row(str(entry.position), entry.kind, span, p, f"{entry.logit:+.2f}", entry.state, slot)
    return table


def colour(p: float) -> str:
    """Green, yellow or red."""
    return next(name for limit, name in _COLOURS if p < limit)


if __name__ == "__main__":
    sys.exit(run_command(main, "chat", record=False))
