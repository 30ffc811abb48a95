"""p over an answer: what is drawn on the terminal and as a picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread
from rich.console import Console
from tiny_models import HELLO, NEVER, TALKS, build

from safealign.errors import ConfigError
from safealign.reporting.explain import Explanation
from safealign.session import Output

HITS = {"query": None, "window": -1e3, "prefix": None}


def printed(drawn: Any, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(drawn)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def explained(thresholds: dict[str, float | None], **options: Any) -> tuple[Output, Explanation, str]:
    model = build(thresholds)
    out = model.generate(HELLO, **options)
    return out, Explanation.of(out, model.tokenizer), printed(model.explain(out))


def test_the_text_and_every_part_is_there() -> None:
    out, found, text = explained(NEVER, schedule="periodic", interval=4)
    assert "".join(found.pieces) == out.text and out.p is not None
    assert f"request p {out.p:.3f}" in text and "θ_query" in text and "θ_window" in text
    assert "R: request; tokens 1 to 16" in text and "▲" not in text
    assert not found.withdrawn and found.first == 1
    assert set(found.newest()) == set(range(1, 17))


def test_the_newest_verdict_colours_a_token() -> None:
    out, found, _ = explained(NEVER, schedule="every")
    assert found.newest()[16] == out.trace[-1].p and found.newest()[1] == out.trace[10].p


@pytest.mark.parametrize(("dependency", "withdrawn"), [("medium", 2), ("high", 2), ("low", 0)])
def test_an_intervention_and_what_it_took_back_are_marked(dependency: str, withdrawn: int) -> None:
    options = {"schedule": "periodic", "interval": 5, "dependency": dependency, "max_new_tokens": 60}
    out, found, text = explained(HITS, **options)
    assert out.intervened_at == 5 and "intervened at token 5" in text and "▲" in text
    assert len(found.withdrawn) == withdrawn == text.count("withdrawn: tokens")
    assert len(found.withdrawn) + len(found.standing) == len(out.trace)
    assert found.last >= max(entry.span[1] for entry in out.trace if entry.span)


def test_what_a_cancelled_answer_had_not_shown_is_marked_too() -> None:
    model = build(HITS)
    session = model.session(1, schedule="periodic", interval=5)
    answer = session.submit(model.prompts([HELLO])[0])
    for _ in range(7):
        session.step()
    session.cancel(answer)
    session.events()
    assert answer.output is not None and len(answer.output.tokens) == 5
    found = Explanation.of(answer.output, model.tokenizer)
    assert [entry.position for entry in found.withdrawn] == [6] and max(found.newest()) == 5


def test_a_refused_request_is_marked_at_the_start() -> None:
    out, found, text = explained({"query": -1e3, "window": 1e3, "prefix": None}, max_new_tokens=20)
    assert out.intervened_at == 0 and "intervened at token 0" in text
    assert not found.withdrawn and not found.newest()  # refreshes judge the request, not the refusal's text


def test_a_prefix_is_part_of_the_axis(tmp_path: Path) -> None:
    model = build(NEVER)
    out = model.generate(TALKS[2], schedule="every")
    found = Explanation.of(out, model.tokenizer)
    assert found.first == 1 - model.prompts([TALKS[2]])[0].prefix
    text = printed(model.explain(out, tmp_path / "prefix.png"))
    assert "[caller's prefix]" in text and "θ_prefix" in text and f"tokens {found.first} to 16" in text


def test_without_safety_it_says_so(tmp_path: Path) -> None:
    model = build(NEVER)
    out = model.generate(HELLO, safety=False)
    assert "nothing was judged" in printed(model.explain(out, tmp_path / "off.png"))
    assert (tmp_path / "off.png").stat().st_size > 1000


def test_long_answers_fit_a_terminal() -> None:
    model = build(NEVER)
    out = model.generate(HELLO, max_new_tokens=200, min_new_tokens=200, schedule="every")
    text = printed(model.explain(out), width=100)
    assert "3 to a column" in text
    assert len([line for line in text.splitlines() if "┤" in line or "│" in line]) == 6


@pytest.mark.parametrize("n", [12, 150])
@pytest.mark.parametrize("thresholds", [NEVER, HITS])
def test_pictures_are_written_whole(n: int, thresholds: dict[str, float | None], tmp_path: Path) -> None:
    model = build(thresholds)
    out = model.generate(HELLO, max_new_tokens=n, min_new_tokens=n, schedule="periodic", interval=5)
    model.explain(out, path=tmp_path / "deep" / "x.png")
    pixels = imread(tmp_path / "deep" / "x.png")
    assert pixels.shape[1] >= 1000 and pixels.std() > 0.05
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.png"]


def test_a_format_that_is_none_is_refused(tmp_path: Path) -> None:
    model = build(NEVER)
    with pytest.raises(ConfigError, match="none of"):
        model.explain(model.generate(HELLO), tmp_path / "x.docx7")
