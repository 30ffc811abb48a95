"""`python -m safealign.chat model=outputs/x/export`: talks, and shows p_malicious as it does."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from safealign.commands import run_command
from safealign.config.composing import decoding_changes
from safealign.config.roots import ChatConfig
from safealign.data.records import Message
from safealign.errors import SafealignError
from safealign.reporting.explain import colour

if TYPE_CHECKING:
    from safealign.model import SafeModel
    from safealign.session import Output

HELP = (
    "/explain: p over the last answer (/explain FILE.png: as a picture) · /trace: its every verdict · "
    "/new: forget the conversation · /quit or Ctrl-D: leave · Ctrl-C: stop an answer"
)
FORGOTTEN = "refused: this exchange is not carried on (forget_refused=false keeps it)"


class Chat:
    """A conversation on the terminal: `say` answers one line and remembers the turn.

    The next prompt is rendered from the turns' text alone: what the slot held while an answer was written is not
    part of it, and the request's verdict covers the text of every turn. `forget_refused`: exchanges in which the
    rules stepped in are left out of it, so that one refused request does not weigh on all that follow.
    """

    def __init__(
        self,
        model: SafeModel,
        options: dict[str, Any],
        console: Console,
        system: str | None = None,
        forget_refused: bool = True,
    ) -> None:
        self.model, self.options, self.console = model, options, console
        self.forget_refused = forget_refused
        self.opening = (Message("system", system),) if system else ()
        self.turns: tuple[Message, ...] = self.opening
        self.last: Output | None = None

    def say(self, line: str) -> None:
        """Streams the answer to `line`; Ctrl-C ends the answer, not the chat, and the turn is forgotten."""
        asked = (*self.turns, Message("user", line))
        try:
            output = self._stream(asked)
        except KeyboardInterrupt:
            self._note(" … stopped; this turn is forgotten")
            return
        self.last = output
        self.console.print()
        self.console.print(verdict(output))
        if self.forget_refused and output.intervened_at is not None:
            self._note(FORGOTTEN)
        else:
            self.turns = (*asked, Message("assistant", output.text or " "))

    def obey(self, line: str) -> bool:
        """Carries out a command; False ends the chat."""
        command, _, argument = line.partition(" ")
        if command == "/new":
            self.turns, self.last = self.opening, None
            self._note("a new conversation")
        elif command in ("/trace", "/explain") and self.last is None:
            self._note("no answer yet")
        elif command in ("/trace", "/explain") and self.last is not None:
            self.console.print(trace_table(self.last) if command == "/trace" else self._explained(self.last, argument))
        elif command != "/quit":
            self._note(HELP)
        return command != "/quit"

    def _stream(self, asked: tuple[Message, ...]) -> Output:
        """Shows text as it comes, in the colour of the newest verdict. However it ends, the answer's row is freed."""
        found: Output | None = None
        with closing(self.model.stream(asked, **self.options)) as events:
            for event in events:
                style = "" if event.p is None else colour(event.p)
                self.console.print(Text(_harmless(event.text), style=style), end="", soft_wrap=True)
                found = event.output or found
        assert found is not None  # a stream ends with its output
        return found

    def _explained(self, output: Output, path: str) -> RenderableType:
        drawn = self.model.explain(output, path.strip() or None)
        return Text(f"written to {path.strip()}", style="dim") if path.strip() else drawn

    def _note(self, text: str) -> None:
        self.console.print(Text(text, style="dim"))


def _harmless(text: str) -> str:
    """The text without what a terminal would obey: control characters but for line ends and tabs."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def main(config: ChatConfig) -> None:
    """Loads the export and reads lines until the end of input."""
    from safealign.model import load

    console = Console(highlight=False)
    if config.threads:
        torch.set_num_threads(config.threads)
    console.print(Text(f"loading {config.model.path}"))
    model = load(config.model.path, dtype=config.model.dtype, attn=config.model.attn, offline=config.offline)
    console.print(Text(HELP, style="dim"))
    chat = Chat(model, decoding_changes(config.decoding), console, config.system, config.forget_refused)
    converse(chat, lambda: console.input("[bold]you[/] › "))


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
        except (SafealignError, OSError) as error:
            chat.console.print(Text(str(error), style="red"))


def verdict(output: Output) -> Text:
    """One line: p of the request, the highest p on the way, and what was done."""
    line = Text().append("p_malicious ", style="dim")
    if output.p is None:
        return line.append("not looked at (safety is off)", style="dim")
    line.append(f"{output.p:.3f}", style=colour(output.p))
    windows = [entry.p for entry in output.trace if entry.kind in ("window", "confirm", "prefix")]
    if windows:
        line.append(" · highest window ", style="dim").append(f"{max(windows):.3f}", style=colour(max(windows)))
    if output.intervened_at is not None:
        line.append(f" · intervened at token {output.intervened_at}", style="bold red")
    return line.append(f" · {output.n_tokens} tokens", style="dim")


def trace_table(output: Output) -> Table:
    """Every evaluation of the safety token, in order."""
    table = Table("step", "kind", "tokens", "p", "logit", "state", "slot")
    for entry in output.trace:
        span = "request" if entry.span is None else f"{entry.span[0]}–{entry.span[1]}"
        p = Text(f"{entry.p:.3f}", style=colour(entry.p))
        slot = "written" if entry.wrote else ""
        table.add_row(str(entry.position), entry.kind, span, p, f"{entry.logit:+.2f}", entry.state, slot)
    return table


if __name__ == "__main__":
    sys.exit(run_command(main, "chat", record=False))
