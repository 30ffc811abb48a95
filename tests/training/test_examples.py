"""Examples from records: no harmful target ever, labels of windows, recovery, the gate's and slot's shares."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from safealign.data.pairings import PairingSettings, pair
from safealign.data.records import BENIGN, MALICIOUS, LabelledSpan, Message, Record
from safealign.data.rendering import Renderer
from safealign.data.splicing import splice, turn_token
from safealign.layout import RowKind
from safealign.modeling.tiny import tiny_tokenizer
from safealign.training.examples import IGNORED, Example, ExampleSettings, build_examples
from safealign.training.viewing import show_example

RENDERER = Renderer(tiny_tokenizer())
SETTINGS = ExampleSettings("Sorry, no", windows_per_answer=6, recovery_share=1.0)
ANSWER_CHARACTERS = "abcdefg ,."
HARMFUL_CHARACTERS = "QXZ"


def _examples(records: list[Record], seed: int = 0, **changes: Any) -> list[Example]:
    from dataclasses import replace

    return build_examples(records, RENDERER, replace(SETTINGS, **changes), seed)


@st.composite
def answers(draw: st.DrawFn) -> Record:
    """A record whose harmful passages are written in letters that nothing else uses."""
    pieces, spans, at = [], [], 0
    for harmful in draw(st.lists(st.booleans(), min_size=1, max_size=4)):
        piece = draw(st.text(HARMFUL_CHARACTERS if harmful else ANSWER_CHARACTERS, min_size=1, max_size=25))
        if harmful:
            spans.append(LabelledSpan(at, at + len(piece), MALICIOUS))
        pieces.append(piece)
        at += len(piece)
    text = "".join(pieces)
    if not text.strip():
        text, spans = "abc", []
    whole = all(character in HARMFUL_CHARACTERS for character in text)
    return Record(
        (
            Message("user", draw(st.text(ANSWER_CHARACTERS, min_size=1, max_size=12))),
            Message("assistant", text),
        ),
        label=draw(st.sampled_from([BENIGN, MALICIOUS, None])),
        response_label=MALICIOUS if spans else BENIGN,
        spans=() if whole and draw(st.booleans()) else tuple(spans),
        id="random",
        complete=draw(st.booleans()),
    )


def _targets(example: Example) -> str:
    return RENDERER.tokenizer.decode([label for label in example.labels if label != IGNORED])


@given(record=answers(), seed=st.integers(0, 99), max_length=st.sampled_from([512, 60]))
def test_no_harmful_token_is_ever_a_target(record: Record, seed: int, max_length: int) -> None:
    for example in _examples([record], seed, max_length=max_length):
        assert not set(_targets(example)) & set(HARMFUL_CHARACTERS)
        harmful = set(HARMFUL_CHARACTERS) & set(RENDERER.tokenizer.decode(example.input_ids))
        if harmful and not example.id.endswith("#recovery"):
            assert not _targets(example), "nor what leads to a harmful passage, or what follows it"
        assert len(example.labels) == len(example.input_ids)
        assert all(label in (IGNORED, id_) for id_, label in zip(example.input_ids, example.labels, strict=True))


@given(record=answers(), seed=st.integers(0, 99))
def test_a_window_is_malicious_once_half_of_it_is(record: Record, seed: int) -> None:
    text = record.response or ""
    spans = record.spans or ([LabelledSpan(0, len(text), MALICIOUS)] if record.response_label == MALICIOUS else [])
    example = _examples([record], seed)[0]
    rendered = RENDERER.render(record.messages, close=record.complete)
    for row in (row for row in example.layout.safety if row.kind is RowKind.WINDOW):
        tokens = range(row.pools[0].start, row.pools[0].end)
        bad = sum(_is_bad(rendered.offsets[t - rendered.response.start], spans) for t in tokens)
        assert row.label == float(bad >= len(tokens) / 2)
        assert len(tokens) <= SETTINGS.window_length


def _is_bad(offset: tuple[int, int], spans: Any) -> bool:
    return any(span.start < offset[1] and offset[0] < span.end for span in spans)


@given(record=answers(), seed=st.integers(0, 99))
def test_a_refresh_row_is_malicious_if_the_request_or_its_tokens_are(record: Record, seed: int) -> None:
    text = record.response or ""
    spans = record.spans or ([LabelledSpan(0, len(text), MALICIOUS)] if record.response_label == MALICIOUS else [])
    example = _examples([record], seed)[0]
    rendered = RENDERER.render(record.messages, close=record.complete)
    found = [row for row in example.layout.safety if row.kind is RowKind.REFRESH]
    assert len(found) == (record.label is not None)
    for row in found:
        k = row.pools[-1].length
        assert 1 <= k <= SETTINGS.refresh_length
        bad = any(_is_bad(offset, spans) for offset in rendered.offsets[:k])
        assert row.label == float(record.label == MALICIOUS or bad)


@given(record=answers(), seed=st.integers(0, 99))
def test_the_request_row_carries_the_requests_label(record: Record, seed: int) -> None:
    expected = {BENIGN: 0.0, MALICIOUS: 1.0, None: None}[record.label]
    for example in _examples([record], seed):
        assert [row.label for row in example.layout.safety if row.kind is RowKind.REQUEST] == [expected]
        assert example.layout.safety[0].kind is RowKind.REQUEST


# ---- what the language model learns -----------------------------------------------------------------------------


def test_a_good_answer_is_learned_whole_with_its_end(kit) -> None:
    example = _examples([kit.record("Name a tree", "The oak.")])[0]
    assert _targets(example) == "The oak.<|im_end|>"
    assert example.labels[: -len("The oak.")].count(IGNORED)


def test_an_answer_that_was_cut_teaches_no_end(kit) -> None:
    example = _examples([kit.record("Name a tree", "The oak and", complete=False)])[0]
    assert _targets(example) == "The oak and"


def test_too_long_an_answer_loses_its_end_and_never_its_prompt(kit) -> None:
    record = kit.record("Name a tree " * 4, "The oak. " * 20)
    prompt = RENDERER.render(record.prompt).input_ids
    for limit in (10, len(prompt), len(prompt) + 7):
        example = _examples([record], max_length=limit)[0]
        assert example.input_ids[: len(prompt)] == prompt
        assert len(example.input_ids) == max(limit, len(prompt))
        assert "<|im_end|>" not in _targets(example)


def test_a_prompt_alone_trains_the_verdict_only(kit) -> None:
    example = _examples([kit.record("Do the deed", None, MALICIOUS)])[0]
    assert set(example.labels) == {IGNORED}
    assert [(row.kind, row.label) for row in example.layout.safety] == [(RowKind.REQUEST, 1.0)]


def test_a_refusal_has_harmless_windows_and_a_malicious_slot(kit) -> None:
    """It names the same things as harm does, so its windows are trained as harmless."""
    record = kit.record("Do the deed", "Sorry, no. The deed is a bad one.", MALICIOUS)
    rows = _examples([record])[0].layout.safety
    assert {row.label for row in rows if row.kind is RowKind.WINDOW} == {0.0}
    assert {row.label for row in rows if row.kind is not RowKind.WINDOW} == {1.0}


def test_a_transition_has_windows_about_the_turn(kit) -> None:
    good, bad = "It is wide and cold and blue. ", "QXZ " * 20
    spans = (LabelledSpan(len(good), len(good) + len(bad), MALICIOUS),)
    record = kit.record("Tell me of the sea", good + bad, BENIGN, MALICIOUS, spans=spans)
    seen = Counter(
        row.label
        for seed in range(20)
        for row in _examples([record], seed, windows_per_answer=1)[0].layout.safety
        if row.kind is RowKind.WINDOW
    )
    assert min(seen[0.0], seen[1.0]) >= 10


# ---- recovery ---------------------------------------------------------------------------------------------------


def _recoveries(kit, seed: int = 0, **changes: Any) -> list[Example]:
    bad = "Step one, QXZ; step two, do it again and again and again."
    record = kit.record("Say how it is done", bad, MALICIOUS, MALICIOUS)
    return [e for e in _examples([record], seed, **changes) if e.id.endswith("#recovery")]


@given(seed=st.integers(0, 200))
def test_recovery_masks_the_prefix_and_trains_trigger_refusal_and_end(seed: int) -> None:
    bad = "Step one, QXZ; step two, do it again and again and again."
    turns = (Message("user", "Say how"), Message("assistant", bad))
    record = Record(turns, MALICIOUS, MALICIOUS, id="r")
    example = _examples([record], seed, gate_closed_share=0.0)[1]
    rendered = RENDERER.render(turns)
    start = rendered.response.start
    learned = [row for row, label in enumerate(example.labels) if label != IGNORED]
    k = learned[0] - start
    assert k >= 1 and example.input_ids[: start + k] == rendered.input_ids[: start + k]
    assert learned == list(range(start + k, len(example.input_ids)))
    trigger = RENDERER.trigger_ids(SETTINGS.trigger, mid_answer=True)
    assert list(example.input_ids[start + k : start + k + len(trigger)]) == trigger
    assert example.input_ids[-len(RENDERER.end_ids) :] == RENDERER.end_ids
    refresh = [i for i, row in enumerate(example.layout.safety) if row.kind is RowKind.REFRESH]
    assert len(refresh) == 1
    row = example.layout.safety[refresh[0]]
    assert row.label == 1.0
    assert row.pools == (*rendered.content, (start, start + k))
    # The row that predicts the trigger's first token is x_k: it and all after it see the refresh row.
    before = [0] * (start + k - 1 - rendered.query_end)
    after = [refresh[0]] * (len(example.input_ids) - (start + k - 1))
    assert list(example.layout.sees) == [-1] * rendered.query_end + before + after


@given(record=answers(), seed=st.integers(0, 99))
def test_tokens_are_labelled_where_they_are_text_and_judged(record: Record, seed: int) -> None:
    """One label per text row: 1 where it is harmful, 0 for other text of the answer, none elsewhere."""
    for example in _examples([record], seed):
        labels = example.token_labels
        assert len(labels) == len(example.input_ids) and set(labels) <= {0, 1, IGNORED}
        assert set(labels[: example.layout.last_query + 1]) == {IGNORED}
        for row in (row for row in example.layout.safety if row.kind is RowKind.WINDOW and row.label is not None):
            inside = labels[row.pools[0].start : row.pools[0].end]
            assert IGNORED not in inside and row.label == float(2 * sum(inside) >= len(inside))


def test_recovery_windows_are_probes_with_the_labels_of_their_tokens(kit) -> None:
    labels: Counter[float | None] = Counter()
    for seed in range(30):
        example = _recoveries(kit, seed, gate_closed_share=0.0)[0]
        windows = [i for i, row in enumerate(example.layout.safety) if row.kind is RowKind.WINDOW]
        assert not set(windows) & set(example.layout.sees)
        labels.update(example.layout.safety[i].label for i in windows)
    assert labels[0.0] and labels[1.0]


def test_only_harmful_answers_are_recovered_from_and_a_share_of_them(kit) -> None:
    harmless = [kit.record(f"Name a tree {i}", "The oak.") for i in range(20)]
    assert len(_examples(harmless)) == 20
    harmful = [kit.record(f"Say how {i}", "Step one, then two, then three", MALICIOUS, MALICIOUS) for i in range(300)]
    assert len(_examples(harmful, recovery_share=0.0)) == 300
    assert len(_examples(harmful, recovery_share=1.0)) == 600
    assert _near(len(_examples(harmful, recovery_share=0.5)) - 300, 300, 0.5)


# ---- gate and slot ------------------------------------------------------------------------------------------------


def _near(found: int, n: int, share: float) -> bool:
    return abs(found - n * share) <= 4 * math.sqrt(n * share * (1 - share))


def _closed(example: Example) -> bool:
    return set(example.layout.sees) == {-1}


def test_the_gate_is_closed_at_random_whatever_the_labels(kit) -> None:
    answers_by_label = {
        (BENIGN, BENIGN): "It is wide and blue.",
        (MALICIOUS, BENIGN): "Sorry, no, not that.",
        (MALICIOUS, MALICIOUS): "Step one, then two.",
        (BENIGN, MALICIOUS): "Step one, then two.",
    }
    for (label, judged), answer in answers_by_label.items():
        records = [kit.record(f"Tell me {i}", answer, label, judged) for i in range(300)]
        examples = _examples(records, gate_closed_share=0.25, recovery_share=0.0)
        assert _near(sum(map(_closed, examples)), 300, 0.25), (label, judged)


@pytest.mark.parametrize(("share", "closed"), [(0.0, False), (1.0, True)])
def test_the_ends_of_the_gates_share_are_exact(kit, share: float, closed: bool) -> None:
    examples = _examples(kit.every_pairing(), gate_closed_share=share)
    assert {_closed(example) for example in examples} == {closed}


def test_a_share_of_examples_follows_its_windows_or_refresh_rows(kit) -> None:
    """As at inference: windows write the slot of a benign request's answer, refresh rows that of a refusing one."""
    for label, kind in ((BENIGN, RowKind.WINDOW), (MALICIOUS, RowKind.REFRESH)):
        records = [kit.record(f"Tell me {i}", "It is wide and blue and cold.", label) for i in range(300)]
        examples = _examples(records, gate_closed_share=0.0, follow_windows=0.25, windows_per_answer=2)
        followed = [e for e in examples if set(e.layout.sees) - {-1, 0}]
        assert _near(len(followed), 300, 0.25)
        writers = {e.layout.safety[v].kind for e in followed for v in set(e.layout.sees) - {-1, 0}}
        assert writers == {kind}


@given(record=answers(), seed=st.integers(0, 99))
def test_a_followed_slot_is_the_newest_that_ended_before_the_row(record: Record, seed: int) -> None:
    example = _examples([record], seed, gate_closed_share=0.0, follow_windows=1.0)[0]
    layout = example.layout
    for row, version in enumerate(layout.sees):
        if version <= 0:
            continue
        assert layout.safety[version].ready < row
        kind = layout.safety[version].kind
        ends = [other.ready for other in layout.safety if other.kind is kind and other.ready < row]
        assert layout.safety[version].ready == max(ends)


def test_draws_repeat_with_the_seed_and_change_with_it(kit) -> None:
    records = kit.every_pairing()
    assert _examples(records, 3) == _examples(records, 3)
    assert _examples(records, 3) != _examples(records, 4)


def test_an_examples_draws_do_not_depend_on_what_follows_it(kit) -> None:
    records = kit.every_pairing()
    assert _examples(records, 3)[:2] == _examples(records[:2], 3)


def test_ids_tell_where_an_example_came_from(kit) -> None:
    ids = [example.id for example in _examples(kit.every_pairing())]
    assert len(set(ids)) == len(ids)
    assert sum(id_.endswith("#recovery") for id_ in ids) == 2


# ---- with the pairings ---------------------------------------------------------------------------------------------


def test_all_four_pairings_reach_the_windows(kit) -> None:
    """Window labels of 0 and 1 under requests of both labels: the slot's verdict cannot be a shortcut."""
    requests = [kit.record(f"Name tree {i}", "The oak is a tree of the wood.", BENIGN) for i in range(10)]
    requests += [kit.record(f"Do deed {i}", None, MALICIOUS) for i in range(10)]
    harmful = [kit.record(f"Say how {i}", "Step QX, then ZX, then QZ and X", MALICIOUS, MALICIOUS) for i in range(5)]
    paired = pair(requests, harmful, PairingSettings("Sorry, no", refusals=5, transitions=5), 0)
    examples = _examples(paired)
    seen = {
        (example.layout.safety[0].label, row.label)
        for example in examples
        if not example.id.endswith("#recovery")
        for row in example.layout.safety
        if row.kind is RowKind.WINDOW
    }
    assert seen == {(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)}
    assert not any(set(_targets(example)) & set(HARMFUL_CHARACTERS) for example in examples)


def test_recovery_fits_into_the_longest_example(kit) -> None:
    whole = max(len(example.input_ids) for seed in range(20) for example in _recoveries(kit, seed))
    lengths = {
        longest: [len(e.input_ids) for seed in range(20) for e in _recoveries(kit, seed, max_length=longest)]
        for longest in range(16, whole)
    }
    assert all(length <= longest for longest, found in lengths.items() for length in found)
    assert any(lengths.values()) and not lengths[20]


def test_an_unjudged_answer_is_harmless_after_a_benign_request_alone(kit) -> None:
    turns = (Message("user", "Tell of the misdeed"), Message("assistant", "It goes like this and on and on"))
    for label, learnt, windows in ((MALICIOUS, False, None), (BENIGN, True, 0.0), (None, True, None)):
        (example,) = _examples([Record(turns, label, None, id="one")])
        assert any(target != -100 for target in example.labels) is learnt
        assert {row.label for row in example.layout.safety if row.kind is RowKind.WINDOW} == {windows}


# ---- sampled answers that turn -----------------------------------------------------------------------------------


def _turning(seed: int, label: str) -> Record:
    calm = "The sea is wide and blue, and the wind goes over it all day long without an end."
    rest = "Step one, do the placeholder deed; step two, do it again; step three, be done with it."
    made = [
        Record((Message("user", f"Ask {name}"), Message("assistant", text)), judged, judged, id=name)
        for name, text, judged in (("calm", calm, BENIGN), ("rest", rest, label))
    ]
    found = splice(made[0], made[1], RENDERER, 15, random.Random(seed))
    assert found is not None
    return found


@given(seed=st.integers(0, 99))
def test_windows_across_a_known_turn_are_malicious_once_half_of_them_is(seed: int) -> None:
    record = _turning(seed, MALICIOUS)
    turn = turn_token(record, RENDERER)
    assert turn is not None
    example = _examples([record], seed, windows_per_answer=200, recovery_share=0.0)[0]
    start = RENDERER.render(record.messages, close=False).response.start
    labels = {}
    for row in (row for row in example.layout.safety if row.kind is RowKind.WINDOW):
        (span,) = row.pools
        labels[span.end - start] = row.label
        after = max(0, span.end - start - max(turn, span.start - start))
        assert row.label == float(2 * after >= span.length)
    n = len(example.input_ids) - start
    assert sorted(labels) == list(range(1, n + 1)), "a window ends at every token"
    begun = min(SETTINGS.window_length, turn)
    first = min(end for end, label in labels.items() if label == 1.0)
    assert first == turn + min(turn, -(-SETTINGS.window_length // 2)) if turn >= begun else first > turn
    assert not any(label != IGNORED for label in example.labels)
    assert [int(label) for label in example.token_labels[start:]] == [int(j >= turn) for j in range(n)]


@given(seed=st.integers(0, 99))
def test_an_answer_that_merely_breaks_is_harmless_everywhere_and_never_learnt(seed: int) -> None:
    for example in _examples([_turning(seed, BENIGN)], seed, windows_per_answer=50):
        assert {row.label for row in example.layout.safety} == {0.0}
        assert not any(label != IGNORED for label in example.labels)
        assert not any(label == 1 for label in example.token_labels)


def test_what_is_not_to_be_learnt_trains_verdicts_alone(kit) -> None:
    learnt, not_learnt = (kit.record("Name a tree", "The oak, an old tree.", learn=learn) for learn in (True, False))
    assert any(label != IGNORED for label in _examples([learnt])[0].labels)
    assert not any(label != IGNORED for label in _examples([not_learnt])[0].labels)


def test_an_example_with_a_short_harmful_end_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Every window and refresh row of it may be labelled benign: harm is in none's majority."""
    text = "Take a sheet of paper, fold it once and twice, then press it flat with care. QXZ"
    span = LabelledSpan(text.index("QXZ"), len(text), MALICIOUS)
    turns = (Message("user", "How?"), Message("assistant", text))
    record = Record(turns, BENIGN, MALICIOUS, (span,), "turns")
    found = [e for seed in range(5) for e in _examples([record], seed, windows_per_answer=1, recovery_share=0.0)]
    assert any(all(row.label == 0.0 for row in e.layout.safety) for e in found)
    show_example(found, RENDERER, Console(width=200))
    assert capsys.readouterr().out == "no benign example with windows to show\n"
