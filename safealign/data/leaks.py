"""Training prompts that also stand in an evaluation set: exactly, wrapped in longer text, or nearly."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from safealign.data.records import Record

Encode = Callable[[list[str]], Any]
T = TypeVar("T")

_GRAM = 5  # characters
_MIN_CONTAINED = 16  # grams: shorter prompts ("hello there") occur in other texts by chance
_CONTAINED = 0.95  # share of an evaluation prompt's grams; below 1 for wrappers that change a letter
_BLOCK = 1024  # rows of a similarity matrix held at once


class Leak(NamedTuple):
    """Training prompt `train` matches prompt number `row` of the evaluation set `evaluation`.

    `kind`: "exact" (same letters and digits) | "contained" (inside the longer training prompt) | "near"
    (Jaccard overlap of character 5-grams) | "meaning" (cosine of sentence embeddings). `score` in (0, 1].
    """

    train: int
    evaluation: str
    row: int
    kind: str
    score: float


@dataclass(frozen=True)
class LeakReport:
    """What was left out of the training set, and why."""

    total: int
    dropped: tuple[tuple[str, Leak], ...]

    def counts(self) -> dict[str, dict[str, int]]:
        """Dropped prompts by evaluation set and kind of match."""
        table: dict[str, Counter[str]] = {}
        for _, leak in self.dropped:
            table.setdefault(leak.evaluation, Counter())[leak.kind] += 1
        return {name: dict(kinds) for name, kinds in table.items()}

    def summary(self) -> str:
        """One sentence for the log."""
        if not self.dropped:
            return f"leak check: none of {self.total} training prompts stands in an evaluation set"
        parts = [
            f"{name}: " + ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
            for name, kinds in sorted(self.counts().items())
        ]
        return (
            f"leak check: left out {len(self.dropped)} of {self.total} training prompts ({'; '.join(parts)})"
        )


def normalise(text: str) -> str:
    """Letters and digits only, case folded: what is left of a prompt whatever its spacing and punctuation."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(character for character in folded if character.isalnum())


def prompt_text(record: Record) -> str:
    """The user's turns of a record, for `find_leaks`."""
    return "\n".join(turn.content for turn in record.messages if turn.role == "user")


def find_leaks(
    training_prompts: Sequence[str],
    evaluation_sets: Mapping[str, Sequence[str]],
    encode: Encode | None = None,
    threshold: float = 0.9,
    overlap: float = 0.7,
) -> list[Leak]:
    """Matches between training prompts and evaluation prompts: per training prompt and set the best one.

    `encode(texts)` returns one embedding per text ([N, D]); pairs with cosine >= `threshold` leak. `overlap`:
    the least Jaccard similarity of character 5-grams. Sorted by training prompt.
    """
    names = [(name, index) for name, prompts in evaluation_sets.items() for index in range(len(prompts))]
    evaluation = [prompt for prompts in evaluation_sets.values() for prompt in prompts]
    if not training_prompts or not evaluation:
        return []
    best: dict[tuple[int, str], Leak] = {}
    for train, column, kind, score in _matches(
        list(training_prompts), evaluation, encode, threshold, overlap
    ):
        name, index = names[column]
        leak = Leak(train, name, index, kind, round(score, 4))
        best[train, name] = max(best.get((train, name), leak), leak, key=_strength)
    return sorted(best.values())


def drop_leaks(records: Sequence[T], leaks: Sequence[Leak]) -> tuple[list[T], LeakReport]:
    """The records without those that leak, and the report of what was left out (ids or places, no texts)."""
    strongest: dict[int, Leak] = {}
    for leak in leaks:
        strongest[leak.train] = max(strongest.get(leak.train, leak), leak, key=_strength)
    kept = [record for row, record in enumerate(records) if row not in strongest]
    dropped = tuple((_name(records[row], row), leak) for row, leak in sorted(strongest.items()))
    return kept, LeakReport(len(records), dropped)


def _strength(leak: Leak) -> tuple[int, float]:
    return ("meaning", "near", "contained", "exact").index(leak.kind), leak.score


def _name(record: Any, row: int) -> str:
    known = (getattr(record, key, None) for key in ("where", "id"))
    return next((str(name) for name in known if name), f"row {row + 1}")


def _matches(
    training: list[str], evaluation: list[str], encode: Encode | None, threshold: float, overlap: float
) -> Iterator[tuple[int, int, str, float]]:
    train_letters, eval_letters = ([normalise(text) for text in texts] for texts in (training, evaluation))
    yield from _exact(train_letters, eval_letters)
    yield from _by_grams(train_letters, eval_letters, overlap)
    if encode is not None:
        yield from _by_meaning(_embed(encode, training), _embed(encode, evaluation), threshold)


def _exact(training: list[str], evaluation: list[str]) -> Iterator[tuple[int, int, str, float]]:
    places: dict[str, list[int]] = {}
    for column, text in enumerate(evaluation):
        places.setdefault(text, []).append(column)
    for row, text in enumerate(training):
        if text:
            yield from ((row, column, "exact", 1.0) for column in places.get(text, ()))


def _by_grams(
    training: list[str], evaluation: list[str], overlap: float
) -> Iterator[tuple[int, int, str, float]]:
    """Shared 5-grams counted through an inverted index of the evaluation prompts."""
    sizes = np.zeros(len(evaluation), dtype=np.int64)
    postings: dict[str, list[int]] = {}
    for column, text in enumerate(evaluation):
        grams = _grams(text)
        sizes[column] = len(grams)
        for gram in grams:
            postings.setdefault(gram, []).append(column)
    index = {gram: np.array(columns, dtype=np.int64) for gram, columns in postings.items()}
    for row, text in enumerate(training):
        grams = _grams(text)
        hits = [index[gram] for gram in grams if gram in index]
        if hits:
            shared = np.bincount(np.concatenate(hits), minlength=len(evaluation))
            yield from _judge(row, shared, sizes, len(grams), overlap)


def _judge(
    row: int, shared: NDArray[np.int64], sizes: NDArray[np.int64], n_grams: int, overlap: float
) -> Iterator[tuple[int, int, str, float]]:
    contained = shared / np.maximum(sizes, 1)
    jaccard = shared / np.maximum(sizes + n_grams - shared, 1)
    for column in np.flatnonzero((contained >= _CONTAINED) & (sizes >= _MIN_CONTAINED)):
        yield row, int(column), "contained", float(contained[column])
    for column in np.flatnonzero(jaccard >= overlap):
        yield row, int(column), "near", float(jaccard[column])


def _grams(text: str) -> set[str]:
    return {text[at : at + _GRAM] for at in range(len(text) - _GRAM + 1)}


def _embed(encode: Encode, texts: list[str]) -> NDArray[np.float32]:
    vectors = np.asarray(encode(texts), dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise ValueError(f"encode must return one vector per text, not an array of shape {vectors.shape}")
    unit: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def _by_meaning(
    training: NDArray[np.float32], evaluation: NDArray[np.float32], threshold: float
) -> Iterator[tuple[int, int, str, float]]:
    for start in range(0, len(training), _BLOCK):
        cosine = training[start : start + _BLOCK] @ evaluation.T
        for row, column in zip(*np.nonzero(cosine >= threshold), strict=True):
            yield start + int(row), int(column), "meaning", float(min(1.0, cosine[row, column]))
