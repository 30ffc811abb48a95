"""From document sources to packed rows: read, set some aside, leave leaks out, label, cut, pack; streamed or at once."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from datasets import Dataset, Features, IterableDataset, List, Value

from safealign.config.roots import TrainConfig
from safealign.data.documents import Document, Fault, read_documents, round_robin, sound
from safealign.data.leaks import drop_leaks, find_leaks
from safealign.data.records import LABELS
from safealign.data.rendering import Renderer
from safealign.errors import AssetError, DataError
from safealign.judges.encoder import SentenceEncoder
from safealign.training.examples import Example
from safealign.training.labelling import EMBEDDING, NO_GUARD, Labeller, labeller
from safealign.training.leaking import Encode
from safealign.training.packing import Part, packed, packed_example, parts_of, unpacked
from safealign.training.prepare import Say, evaluation_prompts

BATCH = 256  # documents looked at together: by the leak check, and by the guard
COLUMNS = ("input_ids", "labels", "lengths", "verdicts")
_FEATURES = Features(
    {
        "input_ids": List(Value("int64")),
        "labels": List(Value("int64")),
        "lengths": List(Value("int64")),
        "verdicts": List(Value("float32")),
    }
)


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

    def documents(self, held: bool = False) -> Iterator[Document]:
        """The labelled documents of training, or (`held`) of validation, without leaks.

        Raises DataError for rows that are no document: with all of them, or of a stream with the first.
        """
        if self.config.data.documents.streaming:
            return self._labelled(sound(self.items()), held)
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
        leaks = find_leaks([document.text for document in documents], prompts, encode, threshold)
        kept, report = drop_leaks(documents, leaks)
        if report.dropped and self.config.data.leak_check.action == "error":
            raise DataError(
                "documents repeat evaluation prompts; take them out, or set data.leak_check.action=drop",
                [f"{where}: {leak.kind} match with {leak.evaluation}" for where, leak in report.dropped],
            )
        return kept

    @cached_property
    def _evaluation(self) -> tuple[Mapping[str, list[str]], Encode | None]:
        """The prompts that no document may hold; by meaning too where the guard needs the encoder anyway."""
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


@dataclass
class DocumentData:
    """What the pretraining stage trains on: packed rows in memory, or a stream of them (`n_rows` None).

    `validation`: rows of documents that training does not see. `warm`: labelled parts, one to an example, on which the
    head starts. `shown`: the first rows, for a look at them.
    """

    train: Dataset | IterableDataset
    n_rows: int | None
    validation: Dataset | None
    warm: list[Example]
    stream: DocumentStream
    report: dict[str, Any] = field(default_factory=dict)


def prepare_documents(config: TrainConfig, renderer: Renderer, say: Say, labels: Labeller | None = None) -> DocumentData:
    """Reads, labels and packs what `data.documents` names; of a stream only its beginning.

    Raises DataError with every bad row of what is held in memory (of a stream with the first), and when the verdict
    would have nothing to learn from.
    """
    wanted = config.data.documents
    stream = DocumentStream(config, renderer, labels)
    if wanted.guard != NO_GUARD and not stream.labeller.only_cached:
        say(f"documents: those without a label are judged by the guard ({wanted.guard}); what it finds is kept")
    warm = _warm(stream) if config.safety.lambda_cls > 0 else []
    rows = [] if wanted.streaming else list(stream.rows())
    if not wanted.streaming and not rows:
        raise DataError("data.documents: no document is left to train on: look at its sources and at the leak check")
    held = list(stream.rows(_held_documents(stream)))
    train = _streamed(stream, config.seed) if wanted.streaming else Dataset.from_list(rows, features=_FEATURES)
    data = DocumentData(
        train,
        None if wanted.streaming else len(rows),
        Dataset.from_list(held, features=_FEATURES) if held else None,
        warm,
        stream,
    )
    data.report = document_report(data)
    for line in _described(data):
        say(line)
    return data


def document_faults(config: TrainConfig) -> list[str]:
    """Every row of what would be held in memory that is no document, and every source that cannot be read.

    Of a stream the first rows are looked at.
    """
    wanted, problems = config.data.documents, []
    for source in wanted.sources:
        try:
            items = read_documents(source, config.offline, wanted.streaming)
            looked_at = islice(items, BATCH) if wanted.streaming else items
            problems += [str(item) for item in looked_at if isinstance(item, Fault)]
        except DataError as error:
            problems += error.problems or [f"data.documents: {error}"]
        except AssetError as error:
            problems.append(f"data.documents: {error}")
    return problems


def document_report(data: DocumentData) -> dict[str, Any]:
    """Where the documents came from and what was left out; of a stream, what was read of it so far."""
    report: dict[str, Any] = {
        "stage": "pretraining",
        "records": dict(data.stream.counts),
        "leaks_left_out": data.stream.leaks,
        "streamed": data.n_rows is None,
    }
    if data.n_rows is not None:
        digest = hashlib.sha256()
        for row in data.train:
            digest.update(json.dumps([row["input_ids"], row["verdicts"]]).encode())
        tokens = {"rows": 0, "trained": 0}
        for row in data.train:
            tokens["rows"] += len(row["input_ids"])
            tokens["trained"] += sum(label != -100 for label in row["labels"])
        report |= {"rows": data.n_rows, "tokens": tokens, "digest": digest.hexdigest()[:32]}
    return report


def _streamed(stream: DocumentStream, seed: int) -> IterableDataset:
    found = IterableDataset.from_generator(stream, features=_FEATURES)
    buffer = stream.config.data.documents.shuffle_buffer
    return found.shuffle(seed=seed, buffer_size=buffer) if buffer else found


def _held_documents(stream: DocumentStream) -> Iterator[Document]:
    """The documents of validation; of a stream, those among as many as should hold that number."""
    wanted, fraction = stream.config.data.documents.validation, stream.config.data.val_fraction
    if not wanted or not fraction:
        return iter(())
    return islice(stream.documents(held=True), wanted)


def _warm(stream: DocumentStream) -> list[Example]:
    """The first part of each of the first labelled documents. Raises DataError when one of the labels is missing."""
    config = stream.config
    first = islice(stream.documents(), config.data.documents.warm)
    parts = [parts_of(document, stream.renderer, config.data.max_length)[0] for document in first if document.label]
    missing = [label for label, verdict in zip(LABELS, (0.0, 1.0), strict=True) if not _has(parts, verdict)]
    if missing and not stream.labeller.only_cached:
        raise DataError(
            f"data.documents: no {' and no '.join(missing)} document among the first {config.data.documents.warm}, and "
            "the verdict learns from both: label some, choose another guard, raise data.documents.warm, or set "
            "safety.lambda_cls=0 for the language model alone"
        )
    return [packed_example(row, config.safety.placement, str(i)) for i, row in enumerate(unpacked(parts))]


def _has(parts: Sequence[Part], verdict: float) -> bool:
    return any(part.verdict == verdict for part in parts)


def _described(data: DocumentData) -> list[str]:
    by_label = Counter[str]()
    for name, n in data.stream.counts.items():
        by_label[name.rpartition("/")[2]] += n
    if data.n_rows is None:
        return ["documents: streamed, labelled and packed as training goes on"]
    labels = ", ".join(f"{n} {'without a label' if label == 'None' else label}" for label, n in sorted(by_label.items()))
    tokens = data.report["tokens"]
    return [
        f"documents: {labels}; {data.n_rows} rows, {tokens['rows']:,} tokens ({tokens['trained']:,} of them learnt)",
        *([f"  left out, they repeat evaluation prompts: {data.stream.leaks}"] if data.stream.leaks else []),
    ]
