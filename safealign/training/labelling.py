"""Labels documents by a guard; what it found is kept by content hash, so that a run cut off goes on where it was."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from safealign.assets import cache_dir
from safealign.config.roots import TrainConfig
from safealign.data.documents import Document
from safealign.data.records import BENIGN, MALICIOUS
from safealign.errors import ConfigError, DataError
from safealign.judges.embedding import EmbeddingGuard, fingerprint, worst_stretch
from safealign.judges.encoder import SentenceEncoder
from safealign.judges.protocol import Guard
from safealign.model import SafeModel, load
from safealign.modeling.checkpoint import CARD_FILE
from safealign.modeling.manifest import MANIFEST_FILE, sha256_of
from safealign.training.sources import load_sources

EMBEDDING, NO_GUARD = "embedding", "none"
_LOOKED_UP = 500  # keys of one query


class LabelStore:
    """Probabilities by text digest, one small database per guard in the cache; no text is kept.

    Each `keep` is one transaction: killed at any moment, it holds whole batches. Processes may share it.
    """

    def __init__(self, guard: str, folder: Path | None = None) -> None:
        self.path = (folder or cache_dir() / "labels") / f"{guard}.sqlite"

    def look_up(self, digests: Sequence[str]) -> dict[str, float]:
        """What is known of these digests. Raises DataError for a damaged file."""
        found: dict[str, float] = {}
        if not self.path.is_file():
            return found
        for start in range(0, len(digests), _LOOKED_UP):
            some = digests[start : start + _LOOKED_UP]
            marks = ",".join("?" * len(some))
            found |= dict(self._run(f"SELECT digest, p FROM labels WHERE digest IN ({marks})", [tuple(some)]))
        return found

    def keep(self, found: Mapping[str, float]) -> None:
        """Adds what was found. Raises DataError where it cannot be written."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._run("INSERT OR REPLACE INTO labels VALUES (?, ?)", list(found.items()))

    def _run(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> list[tuple[str, float]]:
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as store, store:
                store.execute("CREATE TABLE IF NOT EXISTS labels (digest TEXT PRIMARY KEY, p REAL NOT NULL)")
                if statement.startswith("SELECT"):
                    return store.execute(statement, rows[0]).fetchall()
                store.executemany(statement, rows)
                return []
        except sqlite3.Error as error:
            raise DataError(f"{self.path} cannot be used ({error}): delete it, its texts are judged again") from error


class GuardMaker(Protocol):
    """Makes a guard when it is needed; `name` is what its labels are kept under."""

    name: str

    def make(self) -> Guard:
        """The guard."""
        ...


@dataclass
class Labeller:
    """Gives a label to documents that have none; the guard is made when the first of them is not in the store.

    p ≥ `malicious_from` is malicious, p ≤ `benign_up_to` benign; what lies between stays without a label and trains
    the language model alone. `only_cached`: nothing is judged, what is not in the store stays without a label.
    """

    maker: GuardMaker | None
    malicious_from: float
    benign_up_to: float
    folder: Path | None = None
    only_cached: bool = False

    @cached_property
    def _guard(self) -> Guard:
        assert self.maker is not None
        return self.maker.make()

    def __getstate__(self) -> dict[str, Any]:
        """A copy in another process makes a guard of its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_guard"}

    def label(self, documents: Sequence[Document]) -> list[Document]:
        """The documents in order, labelled where the guard is sure."""
        bare = {document.digest: document for document in documents if document.label is None}
        if self.maker is None or not bare:
            return list(documents)
        store = LabelStore(self.maker.name, self.folder)
        found = store.look_up(list(bare))
        new = [digest for digest in bare if digest not in found]
        if new and not self.only_cached:
            scores = dict(zip(new, scores_of(self._guard, [bare[digest].text for digest in new]), strict=True))
            store.keep(scores)
            found |= scores
        return [
            replace(document, label=self._label(found.get(document.digest))) if document.label is None else document
            for document in documents
        ]

    def _label(self, p: float | None) -> str | None:
        if p is None or self.benign_up_to < p < self.malicious_from:
            return None
        return MALICIOUS if p >= self.malicious_from else BENIGN


def scores_of(guard: Guard, texts: Sequence[str]) -> list[float]:
    """p of each text; in one call where the guard can (`score_batch`). Raises DataError for what is no probability."""
    batch = getattr(guard, "score_batch", None)
    scores = list(batch(texts)) if batch is not None else [guard.score(text) for text in texts]
    if len(scores) != len(texts) or not all(0.0 <= p <= 1.0 for p in scores):
        raise DataError(f"{type(guard).__name__} must give each text a probability in [0, 1]")
    return scores


class ExportGuard:
    """A safealign export as a guard: p of a request that says the text, the largest of a long one's stretches."""

    def __init__(self, model: SafeModel) -> None:
        self._model = model

    def score_batch(self, texts: Sequence[str]) -> list[float]:
        """p of each text."""
        found: list[float] = worst_stretch(texts, self._judge).tolist()
        return found

    def score(self, prompt: str, response: str | None = None) -> float:
        """p of a text."""
        return self.score_batch([prompt if response is None else response])[0]

    def _judge(self, texts: list[str]) -> torch.Tensor:
        asked = [[{"role": "user", "content": text}] for text in texts]
        return torch.tensor(self._model.score_batch(asked), dtype=torch.float64)


def labeller(config: TrainConfig, only_cached: bool = False) -> Labeller:
    """The labeller that `data.documents.guard` names."""
    documents = config.data.documents
    maker = None if documents.guard == NO_GUARD else _maker(documents.guard, config)
    return Labeller(maker, documents.malicious_from, documents.benign_up_to, only_cached=only_cached)


def _maker(name: str, config: TrainConfig) -> GuardMaker:
    if name == EMBEDDING:
        records = [record for record in load_sources(config) if record.label is not None]
        return _Embedding([r.request for r in records], [r.label == MALICIOUS for r in records], config.offline)
    if not (Path(name) / CARD_FILE).is_file():
        raise ConfigError(f"data.documents.guard={name} is neither {EMBEDDING}, {NO_GUARD}, nor the export of a run")
    return _Export(Path(name), config.offline)


class _Embedding:
    """A guard fitted on labelled requests."""

    def __init__(self, texts: list[str], malicious: list[bool], offline: bool) -> None:
        self.texts, self.malicious, self.offline = texts, malicious, offline
        self.name = fingerprint(texts, malicious)

    def make(self) -> Guard:
        """Fits it."""
        return EmbeddingGuard(SentenceEncoder(offline=self.offline).encode, self.texts, self.malicious)


class _Export:
    """The export of a run."""

    def __init__(self, path: Path, offline: bool) -> None:
        self.path, self.offline = path, offline
        self.name = f"export-{sha256_of(path / MANIFEST_FILE)[:24]}"

    def make(self) -> Guard:
        """Loads it."""
        return ExportGuard(load(self.path, offline=self.offline))
