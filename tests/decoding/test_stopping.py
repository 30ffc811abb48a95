"""Stop strings: cut out of the text, never shown in part, whatever the pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import World

from safealign.decoding.stopping import StopFilter, StopStrings
from safealign.model import SafeModel
from safealign.modeling.tiny import tiny_tokenizer

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
