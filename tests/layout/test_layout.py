"""Safety rows: what they attend to and pool, where they stand, and which version each response row sees."""

from __future__ import annotations

import pytest

from safealign.layout import Rendered, RowKind, Span, build_layout, refresh_row, request_row, window_row

CONTENT = (Span(3, 7), Span(9, 12))


def test_an_inverted_span_has_no_length() -> None:
    assert (Span(2, 5).length, Span(5, 5).length, Span(6, 5).length) == (3, 0, 0)


def test_the_request_row_sees_all_content_and_nothing_else(rendered) -> None:
    row = request_row(rendered(), label=1.0)
    assert (row.kind, row.attends, row.pools, row.label) == (RowKind.REQUEST, CONTENT, CONTENT, 1.0)


def test_the_request_row_does_not_depend_on_the_answer(rendered) -> None:
    assert request_row(rendered(0)) == request_row(rendered(12))


@pytest.mark.parametrize("sees_query", [False, True])
def test_a_window_pools_over_its_span_alone(rendered, sees_query: bool) -> None:
    row = window_row(rendered(), 17, 22, sees_query=sees_query)
    assert row.pools == (Span(17, 22),)
    assert row.attends == ((*CONTENT, Span(17, 22)) if sees_query else (Span(17, 22),))


def test_a_refresh_row_sees_and_pools_content_and_the_first_answer_tokens(rendered) -> None:
    row = refresh_row(rendered(), 4)
    assert row.attends == row.pools == (*CONTENT, Span(15, 19))
    assert refresh_row(rendered(), 0).attends == CONTENT


def test_append_takes_the_id_of_the_next_text_token_and_prepend_takes_zero(rendered) -> None:
    text = rendered()
    rows = {"append": (12, 22, 19), "prepend": (0, 0, 0)}
    for placement, expected in rows.items():
        request, refresh = request_row(text, placement), refresh_row(text, 4, placement)
        window = window_row(text, 17, 22, placement)
        assert (request.position, window.position, refresh.position) == expected


def test_an_unknown_placement_is_refused(rendered) -> None:
    with pytest.raises(ValueError, match="append"):
        request_row(rendered(), "middle")


@pytest.mark.parametrize(("start", "end"), [(14, 20), (20, 28), (20, 20), (22, 21)])
def test_a_window_outside_the_answer_is_refused(rendered, start: int, end: int) -> None:
    with pytest.raises(ValueError, match="window"):
        window_row(rendered(), start, end)


def test_empty_content_is_no_span() -> None:
    text = Rendered(tuple(range(8)), 5, (Span(2, 2), Span(3, 5)), Span(6, 8))
    assert request_row(text).attends == (Span(3, 5),)
    assert refresh_row(text, 1).attends == (Span(3, 5), Span(6, 7))


def test_a_request_without_content_attends_to_itself_alone() -> None:
    row = request_row(Rendered(tuple(range(4)), 3, (), Span(4, 4)))
    assert (row.attends, row.pools, row.position) == ((), (), 0)


def test_only_response_rows_see_the_slot_and_the_first_is_the_generation_prompts_last(rendered) -> None:
    text = rendered()
    layout = build_layout(text, [request_row(text)])
    assert layout.sees == (-1,) * 14 + (0,) * 13


def test_a_prompt_opens_the_slot_for_the_row_that_predicts_the_very_first_token(rendered) -> None:
    prompt = rendered(0)
    assert build_layout(prompt, [request_row(prompt)]).sees == (-1,) * 14 + (0,)


def test_a_closed_gate_shows_nobody_anything(rendered) -> None:
    text = rendered()
    assert set(build_layout(text, [request_row(text)], gate=False).sees) == {-1}


def test_probes_are_seen_by_nobody(rendered) -> None:
    text = rendered()
    rows = [request_row(text), window_row(text, 15, 18), refresh_row(text, 3)]
    assert set(build_layout(text, rows).sees) == {-1, 0}


def test_a_response_row_sees_the_newest_version_whose_span_ended_before_it(rendered) -> None:
    text = rendered()
    rows = [request_row(text), window_row(text, 15, 18), window_row(text, 16, 24), window_row(text, 17, 27)]
    sees = build_layout(text, rows, versions=(0, 1, 2, 3)).sees
    assert sees == (-1,) * 14 + (0,) * 4 + (1,) * 6 + (2,) * 3


def test_a_version_may_be_seen_by_the_last_row_it_depends_on_when_that_row_is_fed_again(rendered) -> None:
    text = rendered()
    rows = [request_row(text), refresh_row(text, 5)]
    sees = build_layout(text, rows, versions=(0, 1), from_row=(14, 19)).sees
    assert sees == (-1,) * 14 + (0,) * 5 + (1,) * 8


def test_no_row_may_see_a_version_that_depends_on_later_text(rendered) -> None:
    text = rendered()
    rows = [request_row(text), refresh_row(text, 5)]
    with pytest.raises(ValueError, match="later row 19"):
        build_layout(text, rows, versions=(0, 1), from_row=(14, 18))


def test_every_version_needs_its_row(rendered) -> None:
    text = rendered()
    with pytest.raises(ValueError, match="one entry for each version"):
        build_layout(text, [request_row(text)], from_row=())


def test_the_last_query_row_is_the_last_content_row_not_the_generation_prompts(rendered) -> None:
    assert build_layout(rendered(), [], versions=()).last_query == 11
