"""The query never sees the slot, a closed gate leaves the language model alone, p_0 ignores the answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from safealign.layout import Rendered, build_layout, refresh_row, request_row, window_row

EXACT: dict[str, float] = {"atol": 1e-5, "rtol": 0.0}
VISIBLE = 1e-2  # a change of content, on these enlarged weights
FELT = 1e-4  # another version of the slot, for one row


def _differs(found: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Largest change per row."""
    return (found - other).abs().flatten(1).amax(dim=1)


def _changed(text: Rendered, row: int, to: int) -> Rendered:
    ids = list(text.input_ids)
    ids[row] = to if ids[row] != to else to + 1
    return replace(text, input_ids=tuple(ids))


def test_query_states_equal_those_of_the_plain_model(model, many_rows) -> None:
    text = model.answered()
    seen = model.one(text, many_rows(text), versions=(0, 3, 4))
    plain = model.plain(text.input_ids)
    for index, depth in enumerate(model.parts.depths):
        expected = plain.hidden_states[depth][0]
        query, answer = slice(0, text.query_end), slice(text.query_end, len(text.input_ids))
        torch.testing.assert_close(seen.states[query, index], expected[query], **EXACT)
        moved = _differs(seen.states[answer, index], expected[answer])
        assert (moved > VISIBLE).all(), "the response rows see the slot, the very first among them"


def test_with_the_gate_closed_every_logit_is_the_plain_models(model, many_rows) -> None:
    text = model.answered()
    seen = model.one(text, many_rows(text), gate=False, versions=(0, 3, 4))
    torch.testing.assert_close(seen.lm, model.plain(text.input_ids).logits[0], **EXACT)


def test_with_the_gate_open_the_slot_moves_the_very_first_token(model, placement) -> None:
    prompt = model.renderer.render([{"role": "user", "content": "Hi there"}])
    seen = model.one(prompt, [request_row(prompt, placement)])
    moved = _differs(seen.lm, model.plain(prompt.input_ids).logits[0])
    assert moved[: prompt.query_end].max() < 1e-5
    assert moved[prompt.query_end] > VISIBLE


def test_changing_a_response_token_leaves_p_0_unchanged(model, many_rows) -> None:
    text = model.answered()
    rows = many_rows(text)
    before = model.one(text, rows, versions=(0, 3, 4))
    for row in range(text.response.start, text.response.end):
        after = model.one(_changed(text, row, 70), rows, versions=(0, 3, 4))
        torch.testing.assert_close(after.verdicts[0], before.verdicts[0], **EXACT)


def test_changing_a_query_token_moves_p_0(model, placement) -> None:
    text = model.answered()
    rows = [request_row(text, placement)]
    before = model.one(text, rows).verdicts
    after = model.one(_changed(text, text.content[-1].start, 70), rows).verdicts
    assert (after - before).abs().item() > VISIBLE


def test_a_longer_answer_leaves_p_0_unchanged(model, placement) -> None:
    text = model.answered()
    prompt = replace(text, input_ids=text.input_ids[: text.response.start])
    rows = [request_row(text, placement)]
    torch.testing.assert_close(model.one(text, rows).verdicts, model.one(prompt, rows).verdicts, **EXACT)


def test_adding_probes_changes_no_logit_and_no_other_row(model, many_rows) -> None:
    text = model.answered()
    rows = many_rows(text)
    alone = model.one(text, rows[:1])
    for extra in (rows[1:2], rows[1:4], rows[1:]):
        seen = model.one(text, [*rows[:1], *extra])
        n = len(text.input_ids)
        torch.testing.assert_close(seen.lm, alone.lm, **EXACT)
        torch.testing.assert_close(seen.states[:n], alone.states[:n], **EXACT)
        torch.testing.assert_close(seen.verdicts[:1], alone.verdicts, **EXACT)


def test_probes_do_not_see_each_other(model, many_rows) -> None:
    text = model.answered()
    rows = many_rows(text)
    together = model.one(text, rows).verdicts
    apart = [model.one(text, [rows[0], row]).verdicts[1] for row in rows[1:]]
    torch.testing.assert_close(together[1:], torch.stack(apart), **EXACT)


def test_the_order_of_probes_does_not_matter(model, many_rows) -> None:
    text = model.answered()
    rows = many_rows(text)
    forth, back = model.one(text, rows), model.one(text, [rows[0], *rows[:0:-1]])
    torch.testing.assert_close(back.lm, forth.lm, **EXACT)
    torch.testing.assert_close(back.verdicts[1:].flip(0), forth.verdicts[1:], **EXACT)


def test_a_response_row_sees_exactly_the_newest_version_that_is_ready(model, placement) -> None:
    """Each answer row's logits equal those of a layout whose only visible slot is that version's row."""
    text = model.answered()
    start = text.response.start
    rows = [
        request_row(text, placement),
        window_row(text, start, start + 3, placement),
        window_row(text, start, start + 6, placement),
    ]
    seen = model.one(text, rows, versions=(0, 1, 2))
    older = model.one(text, rows, versions=(0, 1))
    oldest = model.one(text, rows, versions=(0,))
    torch.testing.assert_close(seen.lm[: start + 6], older.lm[: start + 6], **EXACT)
    torch.testing.assert_close(older.lm[: start + 3], oldest.lm[: start + 3], **EXACT)
    assert _differs(seen.lm, older.lm)[start + 6] > FELT
    assert _differs(older.lm, oldest.lm)[start + 3] > FELT


def test_a_later_version_never_reaches_back(model, placement) -> None:
    """Changing what only the second version depends on leaves earlier rows as they are."""
    text = model.answered()
    k = 5
    rows = [request_row(text, placement), refresh_row(text, k, placement)]
    last = text.response.start + k - 1
    before = model.one(text, rows, versions=(0, 1)).lm
    after = model.one(_changed(text, last, 70), rows, versions=(0, 1)).lm
    torch.testing.assert_close(after[:last], before[:last], **EXACT)


def test_the_row_that_is_fed_again_with_its_refresh_row_sees_it(model, placement) -> None:
    text = model.answered()
    last = text.response.start + 4
    rows = [request_row(text, placement), refresh_row(text, 5, placement)]
    again = model.one(text, rows, versions=(0, 1), from_row=(text.query_end, last)).lm
    after = model.one(text, rows, versions=(0, 1)).lm
    torch.testing.assert_close(again[:last], after[:last], **EXACT)
    assert _differs(again, after)[last] > FELT


@pytest.mark.parametrize("sees_query", [False, True])
def test_a_window_depends_on_the_query_only_through_its_tokens_unless_it_sees_it(
    model, placement, sees_query: bool
) -> None:
    """Attention itself: a window gives weight to the query's content iff the option says so."""
    text = model.answered()
    window = window_row(text, text.response.start, text.response.start + 4, placement, sees_query)
    query = [key for span in text.content for key in range(span.start, span.end)]
    layout = build_layout(text, [request_row(text, placement), window])
    weights = model.attention_of(text, layout, 1)
    assert bool(weights[:, query].gt(0).any()) == sees_query
