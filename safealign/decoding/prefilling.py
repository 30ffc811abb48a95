"""Prompts in pieces: how much text one forward takes, so that memory does not grow with the square of its length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from safealign.decoding.planning import Feed

PREFILL_TOKENS = 4096  # text rows of one prefill forward


def chunks(feed: Feed, size: int) -> list[Feed]:
    """A prompt's feed in pieces of `size` tokens; the last one has the probes and every row that sees their verdict,
    so that it may be longer (by the end of the template, and by a caller's prefix).
    """
    end = min(feed.row.prompt.rendered.query_end, len(feed.tokens) - 1)
    last = end // size * size if len(feed.tokens) > size else 0
    pieces = [Feed(feed.row, feed.tokens[start : start + size]) for start in range(0, last, size)]
    return [*pieces, Feed(feed.row, feed.tokens[last:], feed.probes, feed.sees_new)]


def portions(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices by falling length, in portions of at most PREFILL_TOKENS padded tokens; all at once if they
    fit.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    if len(order) * lengths[order[0]] <= PREFILL_TOKENS:
        yield list(range(len(lengths)))
        return
    start = 0
    while start < len(order):
        size = max(1, PREFILL_TOKENS // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size
