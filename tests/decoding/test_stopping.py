"""Stop strings: cut out of the text, never shown in part, whatever the pieces."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import ScriptedRules
from worlds import TRIGGER, World

from safealign.decoding import CalibratedThresholds, Run
from safealign.decoding.stopping import StopFilter, StopStrings
from safealign.model import SafeModel
from safealign.modeling.tiny import tiny_tokenizer
from safealign.session import Output, Session

TOKENIZER = tiny_tokenizer()
LETTERS = st.text("ab€", max_size=12)
STOPS = st.lists(st.text("ab€", min_size=1, max_size=4), min_size=1, max_size=3)


@given(text=LETTERS, stops=STOPS, data=st.data())
def test_streamed_pieces_join_to_the_cut_text(text: str, stops: list[str], data: st.DataObject) -> None:
    found = StopStrings(TOKENIZER, stops)
    filtered, shown, rest = StopFilter(found), "", text
    while rest:
        size = data.draw(st.integers(1, 3))
        shown += filtered.push(rest[:size])
        assert found.cut(text).startswith(shown)
        rest = rest[size:]
    assert shown + filtered.finish() == found.cut(text)
    assert not any(stop in found.cut(text) for stop in stops)


def test_the_stop_string_that_is_complete_first_cuts() -> None:
    """Not the one that begins first: that would take back what was streamed."""
    assert StopStrings(TOKENIZER, ["a", "baa"]).cut("baa") == "b"
    assert StopStrings(TOKENIZER, ["aa", "baa"]).cut("baab") == ""


@given(text=LETTERS, stops=STOPS)
def test_a_hit_is_seen_at_the_token_that_completes_it(text: str, stops: list[str]) -> None:
    found, ids = StopStrings(TOKENIZER, stops), TOKENIZER.encode(text, add_special_tokens=False)
    for n in range(1, len(ids) + 1):
        whole = any(stop in TOKENIZER.decode(ids[:n]) for stop in stops)
        assert found.hit(ids[:n]) == whole
        if whole:
            return


@pytest.mark.parametrize("schedule", ["first", "every"])
def test_an_answer_ends_before_its_stop_string(world: World, schedule: str) -> None:
    model = SafeModel(world.lm, TOKENIZER, world.parts)
    options = {"schedule": schedule, "theta_query": None, "theta_window": None, "theta_prefix": None}
    messages = [{"role": "user", "content": "Say it"}]
    whole = model.generate(messages, max_new_tokens=40, **options).text
    stop = whole[len(whole) // 2 :][:3]
    out = model.generate(messages, max_new_tokens=40, stop=[stop], **options)
    assert out.text == whole[: whole.find(stop)] and out.finish_reason == "stop"
    events = list(model.stream(messages, max_new_tokens=40, stop=[stop], **options))
    assert "".join(event.text for event in events) == out.text
    assert events[-1].output is not None and events[-1].output.text == out.text


def _refusing(world: World, options: Any, eos: Any, **own: Any) -> tuple[str, Output]:
    """Streamed text and output of an answer whose every window raises an alarm."""
    decoder = world.decoder(options, CalibratedThresholds(), eos, tokenizer=TOKENIZER)
    decoder.rules = ScriptedRules.like(decoder.rules, 0, query_rate=0.0, window_rate=1.0, confirm_rate=1.0)
    session = Session(Run(decoder, 1, 8, 8), TOKENIZER, decoder.eos_ids)
    answer, text = session.submit(world.prompts()[0], **own), ""
    while session.busy:
        text += "".join(event.text for _, event in session.step())
    assert answer.output is not None
    return text, answer.output


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_refusal_in_place_of_an_end_of_turn_is_streamed_whole(world: World, with_options: Any, after: int) -> None:
    options = with_options(max_new_tokens=12)
    plain = world.decoder(with_options(safety=False), CalibratedThresholds(), ()).decode(world.prompts()[:1], [0])
    text, out = _refusing(world, options, [plain[0].tokens[after]])
    assert out.intervened_at in (0, 1)
    assert text == out.text and options.trigger in text


@pytest.mark.parametrize("stop", ["\n\n", "Sorry", "y, n", "no", TRIGGER])
def test_a_stop_string_in_the_inserted_trigger_hides_no_refusal(world: World, with_options: Any, stop: str) -> None:
    whole_text, whole = _refusing(world, with_options(), ())
    text, out = _refusing(world, with_options(), (), stop=(stop,))
    assert whole.refused and out.refused and whole.intervened_at == out.intervened_at == 1
    assert text == out.text and TRIGGER in text
    head, _, tail = whole_text.partition(TRIGGER)
    assert text == head + TRIGGER + StopStrings(TOKENIZER, [stop]).cut(tail)


def test_after_the_trigger_stop_strings_count_again(world: World, with_options: Any) -> None:
    whole = _refusing(world, with_options(), ())[0]
    head, _, tail = whole.partition(TRIGGER)
    stop = tail[len(tail) // 2 :][:3]
    assert stop and stop not in head
    text, out = _refusing(world, with_options(), (), stop=(stop,))
    assert text == out.text == head + TRIGGER + tail[: tail.find(stop)] and out.finish_reason == "stop"
    seam = tail[:1]  # begins inside the trigger: no stop string, since part of it was inserted
    assert _refusing(world, with_options(), (), stop=(TRIGGER[-2:] + seam,))[0] == whole


def test_the_fixed_refusal_is_shown_whole(world: World, with_options: Any) -> None:
    text, out = _refusing(world, with_options(dependency="high"), (), stop=("o.",))
    assert text == out.text and text.endswith("No.") and out.finish_reason == "refusal"


@pytest.mark.parametrize("dependency", ["medium", "high"])
def test_an_alarm_on_the_stop_string_itself_still_shows_the_refusal(
    world: World, with_options: Any, dependency: str
) -> None:
    """What completes it is held back until it is judged, as an end of turn is."""
    options = with_options(dependency=dependency, max_new_tokens=12)
    plain = world.decoder(with_options(safety=False), CalibratedThresholds(), ()).decode(world.prompts()[:1], [0])
    stop = TOKENIZER.decode(plain[0].tokens[:1])
    text, out = _refusing(world, options, (), stop=(stop,))
    assert out.intervened_at == 0 and out.refused is (dependency == "high" or TRIGGER in text)
    assert text == out.text and text.startswith(TRIGGER if dependency == "medium" else "No.")
