"""The documents of a config, read one by one: some set aside, leaks left out, labelled, cut and packed into rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import torch

from safealign.config.roots import TrainConfig
from safealign.data.documents import Document, Fault, read_documents, round_robin, sound
from safealign.data.leaks import drop_leaks, find_leaks
from safealign.data.rendering import Renderer
from safealign.errors import DataError
from safealign.judges.embedding import STRETCH
from safealign.judges.encoder import SentenceEncoder
from safealign.training.labelling import EMBEDDING, Labeller, labeller
from safealign.training.leaking import Encode
from safealign.training.packing import packed, parts_of, unpacked
from safealign.training.prepare import evaluation_prompts

BATCH = 256  # documents looked at together: by the leak check, and by the guard


class DocumentStream:
    """The documents of a config, and the rows they make; each pass starts from the beginning.

    What is not streamed is read and labelled once. `counts` holds what training read, of a stream in its newest pass:
    documents by "source/label"; `leaks` how many were left out. A copy in another process (a data loader's worker)
    counts for itself.
    """

    def __init__(self, config: TrainConfig, renderer: Renderer, labels: Labeller | None = None) -> None:
        self.config, self.renderer = config, renderer
        self.labeller = labels or labeller(config)
        self.counts: Counter[str] = Counter()
        self.leaks = 0
        self._kept: dict[bool, list[Document]] = {}

    def items(self) -> Iterator[Document | Fault]:
        """Every document and every fault, one of each source in turn. Raises as `read_documents` does."""
        wanted = self.config.data.documents
        return round_robin([read_documents(s, self.config.offline, wanted.streaming) for s in wanted.sources])

    def documents(self, held: bool = False, read: int | None = None) -> Iterator[Document]:
        """The labelled documents of training, or (`held`) of validation, without leaks.

        `read`: of a stream, look at so many documents at most. Raises DataError for rows that are no document: with all
        of them, or of a stream with the first.
        """
        if self.config.data.documents.streaming:
            return self._labelled(islice(sound(self.items()), read), held)
        if held not in self._kept:
            self._kept[held] = list(self._labelled(iter(self._all), held))
        return iter(self._kept[held])

    def _labelled(self, documents: Iterator[Document], held: bool) -> Iterator[Document]:
        if not held:
            self.counts, self.leaks = Counter(), 0
        while batch := list(islice(documents, BATCH)):
            chosen = [document for document in batch if self._held(document) == held]
            clean = self._without_leaks(chosen)
            labelled = self.labeller.label(clean)
            if not held:
                self.counts.update(f"{document.source}/{document.label}" for document in labelled)
                self.leaks += len(chosen) - len(clean)
            yield from labelled

    @cached_property
    def _all(self) -> list[Document]:
        items = list(self.items())
        faults = [str(item) for item in items if isinstance(item, Fault)]
        if faults:
            raise DataError(f"data.documents has {len(faults)} fault(s) and nothing of it was used:", faults)
        return [item for item in items if isinstance(item, Document)]

    def rows(self, documents: Iterator[Document] | None = None) -> Iterator[dict[str, Any]]:
        """Rows of `documents`, or of training."""
        length = self.config.data.max_length
        parts = (
            part
            for document in (self.documents() if documents is None else documents)
            for part in parts_of(document, self.renderer, length)
        )
        return packed(parts, length) if self.config.data.documents.packing else unpacked(parts)

    def __call__(self) -> Iterator[dict[str, Any]]:
        """The rows of training: what a streamed dataset is generated from."""
        return self.rows()

    def __getstate__(self) -> dict[str, Any]:
        """Without the encoder, which a copy loads for itself."""
        return {name: value for name, value in self.__dict__.items() if name != "_evaluation"}

    def _held(self, document: Document) -> bool:
        """By its text, so that copies of a text stand on one side and a stream needs to be read only once."""
        place = int(document.digest[:8], 16) / 2**32
        return self.config.data.documents.validation > 0 and place < self.config.data.val_fraction

    def _without_leaks(self, documents: Sequence[Document]) -> list[Document]:
        if not self.config.data.leak_check.enabled or not documents:
            return list(documents)
        prompts, encode = self._evaluation
        threshold = self.config.data.leak_check.threshold
        leaks = find_leaks([document.text for document in documents], prompts, None, threshold)
        if encode is not None:
            short = [row for row, document in enumerate(documents) if len(document.text) <= STRETCH]
            found = find_leaks([documents[row].text for row in short], prompts, encode, threshold)
            leaks += [leak._replace(train=short[leak.train]) for leak in found]
        kept, report = drop_leaks(documents, leaks)
        if report.dropped and self.config.data.leak_check.action == "error":
            raise DataError(
                "documents repeat evaluation prompts; take them out, or set data.leak_check.action=drop",
                [f"{where}: {leak.kind} match with {leak.evaluation}" for where, leak in report.dropped],
            )
        return kept

    @cached_property
    def _evaluation(self) -> tuple[Mapping[str, list[str]], Encode | None]:
        """The prompts that no document may hold, and the encoder where the guard needs it anyway.

        A document that says the same as a prompt is no longer than one; in a long one the prompt's letters are found.
        """
        prompts = evaluation_prompts(self.config)
        if self.config.data.documents.guard != EMBEDDING or self.labeller.only_cached:
            return prompts, None
        encode = SentenceEncoder(offline=self.config.offline).encode
        return prompts, keeping(encode, [prompt for some in prompts.values() for prompt in some])


def keeping(encode: Encode, texts: Sequence[str]) -> Encode:
    """`encode` that embeds these texts once; what else comes along is forgotten, as a stream has no end."""
    known = dict(zip(texts, torch.as_tensor(encode(list(texts))), strict=True)) if texts else {}

    def look_up(asked: list[str]) -> Any:
        return torch.stack([known[text] for text in asked]) if all(t in known for t in asked) else encode(asked)

    return look_up
