"""Long answers, written a stretch at a time, each as long as it stays what it is wanted for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from safealign.layout import Rendered
from safealign.sampling.keeping import Portions
from safealign.sampling.settings import SamplingSettings
from safealign.sampling.writer import Progress, Writer, continued

_GRAM, _MOST_REPEATED = 4, 0.5  # sequences of so many words; share of them that may have been there before


@dataclass
class _Draft:
    """An answer under way: what is kept of it, and whether it goes on."""

    prompt: Rendered
    ids: tuple[int, ...] = ()
    text: str = ""
    complete: bool = False
    open: bool = True


def write_long(
    writer: Writer,
    prompts: Sequence[Rendered],
    settings: SamplingSettings,
    accepts: Callable[[Sequence[int], Sequence[str]], Sequence[bool]],
    progress: Progress | None = None,
    kept: Portions | None = None,
) -> list[tuple[str, bool]]:
    """`(text, complete)` of each prompt, the likeliest words with repetitions penalised; "" where nothing is kept.

    After every `deep_chunk` tokens `accepts(indices, texts)` is asked, with all of each text: at the first no, and
    where a stretch mostly repeats what was said, the answer ends before that stretch, as one that was cut. The rest go
    on together. Ids are continued, not text, so that the result is that of one long generation.
    """
    drafts = [_Draft(prompt) for prompt in prompts]
    limit, stretch, penalty = settings.deep_max_new_tokens, settings.deep_chunk, settings.deep_repetition_penalty
    for written in range(0, limit, stretch):
        going = [index for index, draft in enumerate(drafts) if draft.open]
        if not going:
            break
        asked = [continued(drafts[index].prompt, drafts[index].ids) for index in going]
        new_ids = writer.write(asked, min(stretch, limit - written), None, progress, kept, penalty)
        longer = [(*drafts[index].ids, *new) for index, new in zip(going, new_ids, strict=True)]
        texts = [writer.text(ids) for ids in longer]
        accepted = accepts(going, [text for text, _ in texts])
        for index, ids, (text, ended), good in zip(going, longer, texts, accepted, strict=True):
            _extend(drafts[index], ids, text, ended, good)
    return [(draft.text.rstrip("\ufffd"), draft.complete) for draft in drafts]  # a character may be cut in the middle


def _extend(draft: _Draft, ids: tuple[int, ...], text: str, ended: bool, accepted: bool) -> None:
    if not accepted or repeats(draft.text, text):
        draft.open = False
        return
    draft.ids, draft.text, draft.complete, draft.open = ids, text, ended, not ended


def repeats(before: str, text: str) -> bool:
    """Whether most of what `text` adds to `before` was there already: a small model going round in circles."""
    words, n = text.lower().split(), len(before.split())
    grams = [tuple(words[i : i + _GRAM]) for i in range(len(words) - _GRAM + 1)]
    new = range(max(0, n - _GRAM + 1), len(grams))
    seen = set(grams[: new.start])
    old = 0
    for i in new:
        old += grams[i] in seen
        seen.add(grams[i])
    return bool(len(new)) and old > _MOST_REPEATED * len(new)
