"""Reads a causal LM's hidden states: any depths, pooled over any place of a text, from a cache where they are known.

    extractor = HiddenExtractor(lm, layers=(0.25, 0.5), pool=("last", "mean"))
    features = extractor.read([Text.prompt(rendered), Text.answer(rendered, ids)], cache=FeatureCache())

Each text's features are `[P, pools, depths, H]`, P being the number of its places. A text is computed as it is alone:
neither padding nor neighbours in a batch change it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch

from safealign.errors import CheckpointError, ConfigError, DataError
from safealign.layout import Rendered
from safealign.layout.collate import collate_layouts
from safealign.modeling.architectures import decoder_layers
from safealign.modeling.attach import RowPlan, SafetyParts
from safealign.modeling.feature_cache import FeatureCache, Shelf
from safealign.modeling.identity import ModelIdentity, tensors_digest
from safealign.modeling.pooled import Places
from safealign.modeling.safety_token import HeadSettings
from safealign.modeling.taps import Blocks, DeepEnough, tapped
from safealign.modeling.texts import Text, pad_ids

_PER_FILE = 256  # texts; so much a killed extraction loses at most


class HiddenExtractor:
    """Reads the frozen states of a causal LM (or PEFT's wrapper of one) in evaluation mode, without gradients.

    `layers`: fractions of depth as in `HeadSettings` (f is the output of block round(f·L) from 1 on, 1 after the final
    norm); `pool`: `last` (last row of a place), `mean` (over it), `row` (the safety row's own; needs `parts`).
    `dtype`: of the features. Raises ValueError for layers or pools that there are not, ConfigError for `row` without
    safety parts.

    With a cache, weights written to between two reads are noticed, unless the write went past autograd
    (`weight.data.copy_(…)`): make a new extractor after one.
    """

    def __init__(
        self,
        lm: Any,
        layers: Sequence[float] = (1.0,),
        pool: Sequence[str] = ("last",),
        *,
        parts: SafetyParts | None = None,
        dtype: torch.dtype = torch.float32,
        batch_size: int = 32,
    ) -> None:
        settings = HeadSettings(tuple(layers), tuple(pool))
        if "row" in pool and parts is None:
            raise ConfigError("the pool `row` reads safety rows, and this model has none: take `last` or `mean`")
        self.lm, self.parts, self.pool = lm, parts, settings.pool
        self.dtype, self.batch_size = dtype, batch_size
        self.depths = settings.blocks(len(decoder_layers(lm)))
        self._identity = ModelIdentity(lm)

    @classmethod
    def of_head(cls, parts: SafetyParts, batch_size: int = 32, dtype: torch.dtype = torch.float32) -> HiddenExtractor:
        """Reads what the safety head reads: features `[P, …]`, flattened to `[P, width]`, are its inputs."""
        settings = parts.settings
        return cls(parts.lm, settings.layers, settings.pool, parts=parts, dtype=dtype, batch_size=batch_size)

    @classmethod
    def of_token_head(cls, parts: SafetyParts, batch_size: int = 32) -> HiddenExtractor:
        """Reads what the token head reads."""
        return cls(parts.lm, parts.settings.token_layers, parts=parts, batch_size=batch_size)

    @property
    def device(self) -> torch.device:
        """Where the model's ids go in."""
        return self._table.device

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a place's features: pools, depths, hidden size."""
        return len(self.pool), len(self.depths), self._table.shape[1]

    def read(
        self,
        texts: Sequence[Text],
        *,
        cache: FeatureCache | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[torch.Tensor]:
        """Features `[P, pools, depths, H]` of each text, on the CPU, in the given order.

        With a `cache` only what it lacks is computed, and all is handed out as it lies in the files, mapped into
        memory. `progress` is called with the number of texts just done. Raises DataError for texts that cannot be read.
        """
        for index, text in enumerate(texts):
            self._check(index, text)
        if cache is None:
            found = dict(self._compute(dict(enumerate(texts)), progress))
            return [found[index] for index in range(len(texts))]
        return self._through(cache, texts, progress)

    def candidates(
        self, prompt: Rendered, answers: Sequence[Sequence[int]], *, cache: FeatureCache | None = None
    ) -> torch.Tensor:
        """Features `[1 + m, pools, depths, H]` of an instruction and of m answers, all under that instruction."""
        texts = [Text.prompt(prompt), *(Text.answer(prompt, tokens) for tokens in answers)]
        return torch.cat(self.read(texts, cache=cache))

    # ---- through the cache ----------------------------------------------------------------------------------

    def _through(
        self, cache: FeatureCache, texts: Sequence[Text], progress: Callable[[int], None] | None
    ) -> list[torch.Tensor]:
        shelf = cache.shelf(self._context(), self.shape, self.dtype)
        token = self._token_digest()
        keys = [text.key(token) for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if shelf.get(key) is None}
        if progress is not None and len(missing) < len(texts):
            progress(len(texts) - len(missing))
        self._fill(shelf, missing, progress)
        found = {key: shelf.get(key) for key in keys}
        # A file that was damaged since takes its other texts with it: what is still lacking is computed without it.
        lacking = {key: text for key, text in zip(keys, texts, strict=True) if found[key] is None}
        found |= dict(self._compute(lacking, None))
        return [value for key in keys if (value := found[key]) is not None]

    def _fill(self, shelf: Shelf, missing: dict[str, Text], progress: Callable[[int], None] | None) -> None:
        """Computes and writes, a file at a time; what was computed when it is interrupted is written too."""
        done: dict[str, torch.Tensor] = {}
        try:
            for key, value in self._compute(missing, progress):
                done[key] = value
                if len(done) == _PER_FILE:
                    full, done = done, {}  # what cannot be written is not tried again
                    shelf.put(full)
        except BaseException:
            try:
                shelf.put(done)
            except CheckpointError as error:  # the first error is the one to be heard of
                shelf.say(f"warning: {error}")
            raise
        shelf.put(done)

    def _context(self) -> list[Any]:
        """What decides about the features beside the text. The ids of a text cover template and tokenizer."""
        device = self.device.type
        autocast = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else "none"
        return [self._identity.digest(), list(self.depths), list(self.pool), autocast]

    def _token_digest(self) -> str:
        """Of the safety token's vector, on which texts with safety rows depend."""
        return tensors_digest(self.parts.token.state_dict()) if self.parts is not None else ""

    # ---- forwards -------------------------------------------------------------------------------------------

    def _compute(
        self, texts: dict[Any, Text], progress: Callable[[int], None] | None
    ) -> Iterator[tuple[Any, torch.Tensor]]:
        """Features by key, in batches of similar length, the longest first."""
        for armed in (False, True):
            chosen = {key: text for key, text in texts.items() if (text.layout is not None) == armed}
            order = sorted(chosen, key=lambda key: -chosen[key].n_rows)
            for start in range(0, len(order), self.batch_size):
                keys = order[start : start + self.batch_size]
                yield from zip(keys, self._batch([chosen[key] for key in keys]), strict=True)
                if progress is not None:
                    progress(len(keys))

    @torch.no_grad()
    def _batch(self, texts: Sequence[Text]) -> list[torch.Tensor]:
        ids = pad_ids([text.input_ids for text in texts]).to(self.device)
        with evaluating(self.lm), self._caught(texts) as blocks, suppress(DeepEnough):
            self.lm.get_decoder()(input_ids=ids, use_cache=False)
        places = Places(texts, ids.shape[1], ids.device)
        with torch.autocast(ids.device.type, enabled=False):
            pooled = torch.stack([places.pool(blocks[depth], self.pool) for depth in self.depths], dim=3)
        values = require_finite(pooled.to(self.dtype).cpu())
        return [values[at, : len(text.places)].clone() for at, text in enumerate(texts)]

    @contextmanager
    def _caught(self, texts: Sequence[Text]) -> Iterator[Blocks]:
        """The batch's states by depth. Padded on the right, a causal model's texts do not see their padding."""
        layouts = [text.layout for text in texts if text.layout is not None]
        if not layouts:
            with tapped(self.lm, self.depths, stop=True) as blocks:
                yield blocks
            return
        assert self.parts is not None
        batch = collate_layouts(layouts).to(self.device)
        plan = RowPlan(batch.n_safety, batch.mask, batch.position_ids, features_only=True)
        with self.parts.armed(plan, self.depths) as capture:
            yield capture.blocks

    @property
    def _table(self) -> torch.Tensor:
        weight: torch.Tensor = self.lm.get_input_embeddings().weight
        return weight

    def _check(self, index: int, text: Text) -> None:
        n, layout = len(text.input_ids), text.layout
        wrong = [span for place in text.places for span in place if not 0 <= span.start <= span.end <= n]
        if not n or wrong:
            raise DataError(f"text {index} of {n} tokens has no rows {wrong[:1] or ''}: check the spans to read")
        if layout is None and "row" in self.pool:
            raise DataError(f"text {index} has no safety rows for the pool `row` to read: give its layout")
        if layout is None:
            return
        if self.parts is None:
            raise DataError(f"text {index} has safety rows and this extractor no safety parts: pass parts=")
        if layout.n_text != n or ("row" in self.pool and len(layout.safety) != len(text.places)):
            raise DataError(f"text {index} and its layout differ in tokens or in places: lay it out again")


def require_finite(values: torch.Tensor) -> torch.Tensor:
    """The features as they are. Raises DataError where one is NaN or infinite, as fp16 makes large ones."""
    if not bool(values.isfinite().all()):
        raise DataError("some hidden states are not finite in this number format: read them in bf16 or fp32")
    return values


@contextmanager
def evaluating(lm: Any) -> Iterator[None]:
    """Dropout off; a model in the middle of training goes on as it was."""
    training = lm.training
    lm.eval()
    try:
        yield
    finally:
        lm.train(training)
