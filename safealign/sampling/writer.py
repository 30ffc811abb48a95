"""The bare model at work: many prompts in one batch, in portions that are kept as they are done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from safealign.data.rendering import Renderer
from safealign.decoding import CachedEngine, Decoder, DecodingOptions, Prompt
from safealign.layout import Rendered, Span
from safealign.sampling.keeping import Portions, Tokens
from safealign.sampling.settings import SamplingSettings

Progress = Callable[[int], None]
# Tokens of a portion: what a kill may cost. Large enough for the default counts to be one batch that rows enter and
# leave; the composition of a portion never depends on where a job was cut off, since bf16 rounds by it.
_PORTION_TOKENS = 24_576


class Writer:
    """Writes with one undefended model, safety off.

    `top_p`: share of the likeliest tokens that are drawn from. `shared`: a prompt that is asked for several times (the
    same object) is fed once.
    """

    def __init__(
        self, model: Any, renderer: Renderer, settings: SamplingSettings, *, top_p: float = 1.0, shared: bool = False
    ) -> None:
        self.model, self.renderer, self.settings = model, renderer, settings
        self.top_p, self.shared = top_p, shared

    def write(
        self,
        prompts: Sequence[Rendered],
        max_new_tokens: int,
        seed: int | None = None,
        progress: Progress | None = None,
        kept: Portions | None = None,
        repetition_penalty: float = 1.0,
    ) -> list[Tokens]:
        """New ids of each prompt, in order, an end of turn included; greedy without a `seed`.

        Portions that are `kept` are not written again, others are kept as soon as they are done.
        """
        options = self._options(max_new_tokens, seed is not None, repetition_penalty)
        size = max(self.settings.batch_size, _PORTION_TOKENS // max_new_tokens)
        found: list[Tokens] = []
        for start in range(0, len(prompts), size):
            some = prompts[start : start + size]
            first = None if seed is None else seed + start
            found += self._portion(some, options, first, progress, kept)
        return found

    def text(self, ids: Sequence[int]) -> tuple[str, bool]:
        """`(text, complete)` of new ids; complete is False when the limit cut them."""
        end = next((i for i, token in enumerate(ids) if token in self.renderer.eos_ids), None)
        text = self.renderer.tokenizer.decode(list(ids[:end]), skip_special_tokens=True)
        return text, end is not None

    def _portion(
        self,
        prompts: Sequence[Rendered],
        options: DecodingOptions,
        seed: int | None,
        progress: Progress | None,
        kept: Portions | None,
    ) -> list[Tokens]:
        digest = _digest(prompts, options, seed)
        known = kept.get(digest) if kept is not None else None
        if known is not None and len(known) == len(prompts):
            if progress is not None:
                progress(len(known))
            return known
        written = self._run(prompts, options, seed or 0, progress)
        if kept is not None:
            kept.put(digest, written)
        return written

    def _options(self, max_new_tokens: int, drawn: bool, repetition_penalty: float) -> DecodingOptions:
        how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "repetition_penalty": repetition_penalty}
        if drawn:
            how |= {"temperature": self.settings.temperature, "top_k": self.settings.top_k, "top_p": self.top_p}
        return DecodingOptions(safety=False, **how)

    def _run(
        self, prompts: Sequence[Rendered], options: DecodingOptions, seed: int, progress: Progress | None
    ) -> list[Tokens]:
        decoder = Decoder(CachedEngine(self.model, None), options, encoder=self.renderer, eos_ids=self.renderer.eos_ids)
        seeds = [seed + i for i in range(len(prompts))]
        known = {id(prompt): Prompt(prompt) for prompt in prompts} if self.shared else {}
        asked = [known.get(id(prompt)) or Prompt(prompt) for prompt in prompts]
        run, rows = decoder.start(asked, seeds, self.settings.batch_size)
        reported = 0
        while run.busy:
            run.step()
            if progress is not None and run.finished > reported:
                progress(run.finished - reported)
            reported = run.finished
        return [tuple(row.tokens) for row in rows]


def continued(prompt: Rendered, ids: Sequence[int]) -> Rendered:
    """The prompt with `ids` already written, to be written on from there."""
    rows = (*prompt.input_ids, *ids)
    return Rendered(rows, len(rows) - 1, prompt.content, Span(len(rows), len(rows)))


def _digest(prompts: Sequence[Rendered], options: DecodingOptions, seed: int | None) -> str:
    how = [options.max_new_tokens, options.temperature, options.top_k, options.repetition_penalty, seed]
    how += [options.top_p] if options.top_p != 1.0 else []
    return hashlib.sha256(json.dumps([how, [p.input_ids for p in prompts]]).encode()).hexdigest()[:24]
