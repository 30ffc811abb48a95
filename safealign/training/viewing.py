"""One training example, token by token, with its layout and its mask drawn in characters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from safealign.data.rendering import Renderer
from safealign.layout import Layout, RowKind
from safealign.layout.layout import NO_VERSION
from safealign.layout.masks import build
from safealign.training.examples import IGNORED, Example

_WIDEST = 100  # columns of the drawn mask


def show_example(examples: Sequence[Example], renderer: Renderer, console: Console) -> None:
    """Shows the shortest benign example that has windows; harmful and sampled texts are never shown."""
    shown = [e for e in examples if _is_benign(e) and not e.sampled]
    fitting = [e for e in shown if any(r.kind is RowKind.WINDOW for r in e.layout.safety)]
    if not fitting:
        console.print("no benign example with windows to show")
        return
    show(min(fitting, key=lambda e: e.n_tokens), renderer, console)


def show(example: Example, renderer: Renderer, console: Console) -> None:
    """Shows one example: its tokens, its safety rows and its mask."""
    console.print(text_table(example, renderer))
    console.print(safety_table(example.layout))
    console.print(f"mask: a row per token, then per safety row ({len(example.layout.safety)}); █ may attend, · may not")
    console.print(Text(draw(example.layout)))


def text_table(example: Example, renderer: Renderer) -> Table:
    """A row per token: what it is, whether the language model learns to predict it, which slot version it sees."""
    table = Table("row", "token", "part", "trained", "sees", title=f"example {example.id}", title_justify="left")
    for row, token in enumerate(example.input_ids):
        seen = example.layout.sees[row]
        piece = repr(renderer.tokenizer.decode([token]))[1:-1]
        table.add_row(
            str(row),
            Text(piece),
            part_of(example.layout, row),
            "" if example.labels[row] == IGNORED else "yes",
            "" if seen == NO_VERSION else f"S{seen}",
        )
    return table


def part_of(layout: Layout, row: int) -> str:
    """template, content (what row 0 may attend to), or response."""
    content = (span for r in layout.safety if r.kind is RowKind.REQUEST for span in r.attends)
    if any(span.start <= row < span.end for span in content):
        return "content"
    first = next((i for i, label in enumerate(layout.sees) if label != NO_VERSION), layout.n_text)
    return "response" if row > max(layout.last_query, first) else "template"


def safety_table(layout: Layout) -> Table:
    """A row per safety row: kind, spans, position id, label."""
    table = Table("", "kind", "attends to", "position", "label")
    for index, row in enumerate(layout.safety):
        spans = " ".join(f"[{span.start}, {span.end})" for span in row.attends)
        label = "–" if row.label is None else f"{row.label:.0f}"
        table.add_row(f"S{index}", row.kind.name.lower(), spans, str(row.position), label)
    return table


def draw(layout: Layout) -> str:
    """The mask as characters; large ones are thinned so that they fit the terminal."""
    allowed = (build([layout])[0, 0] == 0).float()
    step = -(-allowed.shape[0] // _WIDEST)
    if step > 1:
        allowed = torch.nn.functional.max_pool2d(allowed[None, None], step, ceil_mode=True)[0, 0]
    return "\n".join("".join("█" if cell > 0 else "·" for cell in row) for row in allowed.tolist())


def _is_benign(example: Example) -> bool:
    """No safety row judges harm, and no token is harmful: a short harmful passage may lie in no window's majority."""
    return all(row.label == 0.0 for row in example.layout.safety) and 1 not in example.token_labels
