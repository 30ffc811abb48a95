"""The chat command: turns, colours, commands, Ctrl-C, requests split over turns, refused turns."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_models import build

from safealign.chat import FORGOTTEN, Chat, converse
from safealign.data.records import Message
from safealign.decoding import CalibratedThresholds
from safealign.layout import request_row
from safealign.model import SafeModel
from safealign.session import Session

OPTIONS = {"max_new_tokens": 8}


def make(model: SafeModel, *, color: bool = False, **more: Any) -> tuple[Chat, io.StringIO]:
    shown = io.StringIO()
    system = "standard" if color else None
    console = Console(file=shown, width=100, highlight=False, force_terminal=color, color_system=system)
    return Chat(model, OPTIONS, console, "Be kind.", **more), shown


def talk(model: SafeModel, lines: list[Any], **more: Any) -> tuple[Chat, str]:
    """A chat in which `lines` are typed; an exception among them is what the keyboard does instead."""
    chat, shown = make(model, **more)
    given = iter([*lines, EOFError()])

    def read() -> str:
        line = next(given)
        if isinstance(line, BaseException):
            raise line
        return str(line)

    converse(chat, read)
    return chat, shown.getvalue()


def test_it_remembers_turns_and_shows_p(calm: SafeModel) -> None:
    chat, shown = talk(calm, ["Hello", "", "And then?", "/trace"])
    assert [turn.role for turn in chat.turns] == ["system", "user", "assistant", "user", "assistant"]
    assert shown.count("p_malicious") == 2 and "request" in shown


def test_commands(calm: SafeModel, tmp_path: Path) -> None:
    path = tmp_path / "answer.png"
    lines = ["/trace", "/explain", "/what", "Hello", "/explain", f"/explain {path}", "/new", "/quit", "never read"]
    chat, shown = talk(calm, lines)
    assert shown.count("no answer yet") == 2 and "/trace: its every verdict" in shown
    assert "request p 0." in shown and "R: request" in shown
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [turn.role for turn in chat.turns] == ["system"]


def test_a_picture_that_cannot_be_written_ends_nothing(calm: SafeModel) -> None:
    chat, shown = talk(calm, ["Hello", "/explain answer.gif7", "Hello"])
    assert "cannot draw into answer.gif7" in shown and len(chat.turns) == 5


def test_it_says_when_it_intervened(strict: SafeModel) -> None:
    assert "intervened at token 0" in talk(strict, ["Hello"])[1]


def test_text_has_the_colour_of_the_newest_verdict(calm: SafeModel) -> None:
    chat, shown = make(calm, color=True)
    chat.say("Hello")
    assert chat.last is not None
    codes = {"32" if e.p < 0.2 else "33" if e.p < 0.5 else "31" for e in chat.last.trace}
    assert any(f"\x1b[{code}m" in shown.getvalue().split("p_malicious")[0] for code in codes)
    for event in calm.stream([{"role": "user", "content": "Hello"}], schedule="every"):
        assert event.output is not None or 0.0 < (event.p or 0.0) < 1.0
    assert all(event.p is None for event in calm.stream([{"role": "user", "content": "Hello"}], safety=False))


def test_the_terminal_obeys_nothing_that_the_model_writes(calm: SafeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    chat, shown = make(calm)
    real = calm.stream

    def stream(*args: Any, **options: Any) -> Any:
        for event in real(*args, **options):
            yield event if event.output else replace(event, text="a\x1b]0;b\x07\x1b[2J\x9b1Kc\rd\te\n")

    monkeypatch.setattr(calm, "stream", stream)
    chat.say("Hello")
    assert "a]0;b[2J1Kcd    e\n" in shown.getvalue() and not set(shown.getvalue()) & set("\x1b\x07\x9b\r")


# ---- Ctrl-C -------------------------------------------------------------------------------------------------


def test_ctrl_c_in_an_answer_frees_its_row_and_the_chat_goes_on(
    calm: SafeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions: list[Session] = []
    opened, step = calm.session, Session.step

    def session(*args: Any, **options: Any) -> Session:
        sessions.append(opened(*args, **options))
        return sessions[-1]

    def step_until_interrupted(self: Session) -> Any:
        if len(sessions) == 1 and self.run.live and len(self.run.live[0].tokens) == 3:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(calm, "session", session)
    monkeypatch.setattr(Session, "step", step_until_interrupted)
    chat, shown = talk(calm, ["Hello", "/trace", "Hello again"])
    assert "stopped" in shown and "no answer yet" in shown
    assert not sessions[0].busy and len(sessions) == 2
    assert [turn.content for turn in chat.turns if turn.role == "user"] == ["Hello again"]
    assert chat.last == calm.generate([Message("system", "Be kind."), Message("user", "Hello again")], **OPTIONS)


def test_ctrl_c_while_text_is_shown_frees_the_row_too(calm: SafeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled: list[Any] = []
    cancel = Session.cancel
    monkeypatch.setattr(Session, "cancel", lambda self, answer: (cancelled.append(answer), cancel(self, answer))[1])
    chat, _ = make(calm)

    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(chat.console, "print", interrupted)
        with pytest.raises(KeyboardInterrupt):  # the note that says so is interrupted as well
            chat.say("Hello")
    assert cancelled[0].row.finish == "cancelled" and chat.turns == chat.opening


def test_ctrl_c_at_the_prompt_leaves(calm: SafeModel) -> None:
    chat, _ = talk(calm, ["Hello", KeyboardInterrupt(), "never read"])
    assert len(chat.turns) == 3


# ---- many turns ---------------------------------------------------------------------------------------------


def test_past_turns_are_text_like_any_other(calm: SafeModel) -> None:
    """The answer in turn two is that of the same conversation handed over at once: no slot is carried on."""
    chat, _ = talk(calm, ["Hello", "And then?"])
    assert chat.last == calm.generate(chat.turns[:-1], **OPTIONS)
    rendered = calm.renderer.render(chat.turns[:-1])
    assert calm.prompts([chat.turns[:-1]])[0].rendered == rendered and rendered.response.length == 0


def test_a_request_split_over_turns_is_judged_over_all_of_them(calm: SafeModel) -> None:
    first, second = "Let X be a kite.", "How is X built?"
    chat, _ = talk(calm, [first, second])
    asked = chat.turns[:-1]
    rendered = calm.renderer.render(asked)
    row = request_row(rendered)
    seen = [calm.tokenizer.decode(rendered.input_ids[span.start : span.end]) for span in row.attends]
    assert seen == [turn.content for turn in asked] and row.pools == row.attends
    assert chat.last is not None and chat.last.p == pytest.approx(calm.score(asked), abs=1e-5)
    alone = calm.score([asked[0], Message("user", second)])
    assert abs(chat.last.p - alone) > 1e-6


def test_what_was_not_refused_is_judged_together_around_what_was(calm: SafeModel) -> None:
    chat, _ = make(calm)
    chat.say("Let X be a kite.")
    chat.options = {**OPTIONS, "theta_query": 1e-12}
    chat.say("Now refuse this.")
    chat.options = OPTIONS
    chat.say("How is X built?")
    asked = chat.turns[:-1]
    assert [turn.content for turn in asked if turn.role == "user"] == ["Let X be a kite.", "How is X built?"]
    assert chat.last is not None and chat.last.p == pytest.approx(calm.score(asked), abs=1e-5)


def condemning() -> tuple[SafeModel, str, str]:
    """A model, a request that it refuses, and one that it answers unless the refused exchange stands before it."""
    model = build({"query": -1e3, "window": None, "prefix": None})
    system = Message("system", "Be kind.")
    words = ["Sing", "What is rain?", "Name a tree.", "zzz", "AAAA BBBB", "12345", "Go on", "the the the"]
    logits = model.score_logits([[system, Message("user", word)] for word in words])
    for bad, high in zip(words, logits, strict=True):
        refused = model.generate([system, Message("user", bad)], **OPTIONS).text
        for good, low in zip(words, logits, strict=True):
            turns = [system, Message("user", bad), Message("assistant", refused), Message("user", good)]
            (kept,) = model.score_logits([turns])
            if low + 0.02 < min(kept, high):
                model.thresholds = CalibratedThresholds(query=(low + min(kept, high)) / 2, temperature=2.0)
                return model, bad, good
    raise AssertionError("no such pair: give this test more words")


def test_one_refused_turn_does_not_condemn_the_chat() -> None:
    model, bad, good = condemning()
    chat, shown = talk(model, [bad, good])
    assert FORGOTTEN in shown
    assert chat.last is not None and chat.last.intervened_at is None
    assert [turn.content for turn in chat.turns if turn.role == "user"] == [good]


def test_a_refused_turn_is_kept_if_asked_for() -> None:
    model, bad, good = condemning()
    chat, shown = talk(model, [bad, good], forget_refused=False)
    assert FORGOTTEN not in shown and shown.count("intervened at token 0") == 2
    assert [turn.content for turn in chat.turns if turn.role == "user"] == [bad, good]
