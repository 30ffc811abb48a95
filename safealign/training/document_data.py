"""What the pretraining stage trains on: packed rows in memory or as a stream, validation, and where they came from."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from datasets import Dataset, Features, IterableDataset, List, Value

from safealign.config.roots import TrainConfig
from safealign.data.documents import Document, Fault, read_documents
from safealign.data.records import LABELS
from safealign.data.rendering import Renderer
from safealign.errors import AssetError, DataError
from safealign.ranks import world_size
from safealign.training.collator import EXAMPLE_KEY
from safealign.training.document_stream import BATCH, DocumentStream
from safealign.training.examples import IGNORED, Example
from safealign.training.labelling import NO_GUARD, Labeller
from safealign.training.packing import Part, packed_example, parts_of, unpacked
from safealign.training.prepare import Say
from safealign.training.rank_rows import RankRows

SEARCHED = 20_000  # documents of a stream that are read at most to find those of validation
COLUMNS = ("input_ids", "labels", "lengths", "verdicts")
_FEATURES = Features(
    {
        "input_ids": List(Value("int64")),
        "labels": List(Value("int64")),
        "lengths": List(Value("int64")),
        "verdicts": List(Value("float32")),
    }
)


@dataclass
class DocumentData:
    """What the pretraining stage trains on: packed rows in memory, or a stream of them (`n_rows` None).

    `validation`: rows of documents that training does not see, numbered. `warm`: labelled parts, one to an example, on
    which the head starts. `report` says where the documents came from and what was left out.
    """

    train: Dataset | IterableDataset
    n_rows: int | None
    validation: Dataset | None
    warm: list[Example]
    stream: DocumentStream
    report: dict[str, Any] = field(default_factory=dict)


def prepare_documents(
    config: TrainConfig, renderer: Renderer, say: Say, labels: Labeller | None = None
) -> DocumentData:
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
    if not rows and not (wanted.streaming and any(True for _ in stream.documents())):
        raise DataError("data.documents: no document is left to train on: look at its sources and at the leak check")
    held_out = iter(_held_documents(stream, say))
    held = [row | {EXAMPLE_KEY: n} for n, row in enumerate(stream.rows(held_out))]
    train = _streamed(stream, config.seed) if wanted.streaming else Dataset.from_list(rows, features=_FEATURES)
    data = DocumentData(
        train,
        None if wanted.streaming else len(rows),
        Dataset.from_list(held, features=Features({**_FEATURES, EXAMPLE_KEY: Value("int64")})) if held else None,
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
            tokens["trained"] += sum(label != IGNORED for label in row["labels"])
        report |= {"rows": data.n_rows, "tokens": tokens, "digest": digest.hexdigest()[:32]}
    return report


def _streamed(stream: DocumentStream, seed: int) -> IterableDataset:
    """As one process reads it, or with a shard for each rank."""
    ranks = world_size()
    if ranks == 1:
        found = IterableDataset.from_generator(stream, features=_FEATURES)
    else:
        rows = RankRows(stream, stream.config.trainer.batch_size, ranks)
        found = IterableDataset.from_generator(rows, features=_FEATURES, gen_kwargs={"ranks": list(range(ranks))})
    buffer = stream.config.data.documents.shuffle_buffer
    return found.shuffle(seed=seed, buffer_size=buffer) if buffer else found


def _held_documents(stream: DocumentStream, say: Say) -> list[Document]:
    """The documents of validation; a stream is read until there are as many as wanted, it ends, or has cost enough."""
    wanted, fraction = stream.config.data.documents.validation, stream.config.data.val_fraction
    if not wanted or not fraction:
        return []
    found = list(islice(stream.documents(held=True, read=SEARCHED), wanted))
    if stream.config.data.documents.streaming and len(found) < wanted:
        say(
            f"documents: {len(found)} of {wanted} for validation; val_fraction={fraction:g} sets no more aside of the "
            f"stream's first {SEARCHED:,}, or of all it has"
        )
    return found


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
    if data.n_rows is None:
        return ["documents: streamed, labelled and packed as training goes on"]
    by_label = Counter[str]()
    for name, n in data.stream.counts.items():
        label = name.rpartition("/")[2]
        by_label["without a label" if label == "None" else label] += n
    labels, tokens = ", ".join(f"{n} {label}" for label, n in sorted(by_label.items())), data.report["tokens"]
    return [
        f"documents: {labels}; {data.n_rows} rows, {tokens['rows']:,} tokens ({tokens['trained']:,} of them learnt)",
        *([f"  left out, they repeat evaluation prompts: {data.stream.leaks}"] if data.stream.leaks else []),
    ]
