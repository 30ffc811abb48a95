"""Hidden states on disk, found by a hash of all that they depend on, read where they lie.

One folder for each context (model, depths, pools, number format), in it files of many texts each. A file is written
whole or not at all, so what a killed extraction had written stands. Names and headers hold hashes and counts alone:
no text, no token ids.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from safealign.assets.cache import cache_dir
from safealign.errors import CheckpointError
from safealign.files import private_folder, sync

_VERSION = 1
_NAME = "states"


@dataclass(frozen=True)
class FeatureCache:
    """Where features are kept: `folder`, or `features/` in the asset cache (`SAFEALIGN_CACHE`), for its owner alone.

    `say` hears of entries that were damaged. Nothing is ever thrown away: remove the folder to free its space.
    """

    folder: Path | None = None
    say: Callable[[str], None] = print

    def shelf(self, context: Sequence[Any], shape: Sequence[int], dtype: torch.dtype) -> Shelf:
        """The features of one context; a text's are `[P, *shape]` in `dtype`."""
        key = digest_of(_VERSION, list(context), list(shape), str(dtype))
        root = self.folder if self.folder is not None else cache_dir() / "features"
        folder = root / key[:32]
        with suppress(OSError):  # what cannot be closed may still be read; `put` says what cannot be written
            private_folder(folder if self.folder is not None else root)  # a folder of the caller's stays as it is
        return Shelf(folder, key, tuple(shape), dtype, self.say)


@dataclass
class Shelf:
    """Texts' features under one context, by key. Entries are checked against their hash whenever they are taken."""

    folder: Path
    context: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    say: Callable[[str], None] = print
    _entries: dict[str, _Entry] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for path in sorted(self.folder.glob("*.safetensors")):
            self._load(path)

    def get(self, key: str) -> torch.Tensor | None:
        """A text's features `[P, *shape]`, mapped from the file, not to be written to; None where they are not known.

        A damaged entry takes its whole file with it, with a warning.
        """
        entry = self._entries.get(key)
        if entry is None:
            return None
        found = entry.states[entry.first : entry.first + entry.count]
        if _checksum(self.context, key, found) == entry.checksum:
            return found
        self._drop(entry.path, "its content was changed")
        return None

    def put(self, features: Mapping[str, torch.Tensor]) -> None:
        """Writes a file of texts' features and offers them from there; raises CheckpointError where that fails."""
        if not features:
            return
        rows = {key: value.detach().to("cpu", self.dtype).contiguous() for key, value in features.items()}
        index = [[key, len(value), _checksum(self.context, key, value)] for key, value in rows.items()]
        path = self.folder / f"{digest_of(index)[:32]}.safetensors"
        note = {"context": self.context, "index": json.dumps(index), "checksum": digest_of(self.context, index)}
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            save_file({_NAME: torch.cat(list(rows.values()))}, temporary, metadata=note)
            sync(temporary)
            os.replace(temporary, path)
        except (SafetensorError, OSError) as error:  # a full disk is the one or the other
            raise CheckpointError(
                f"features could not be written to {path} ({error}): free some space or set SAFEALIGN_CACHE"
            ) from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        self._load(path)

    def _load(self, path: Path) -> None:
        try:
            self._entries |= _entries_of(path, self)
        except (OSError, RuntimeError) as error:  # torch's own for a file that it cannot map
            # Too many open files, no memory, no permission: that says nothing against the file.
            self.say(f"warning: cached features in {path} cannot be read ({_first(error)}): they are computed again")
        except (SafetensorError, ValueError, KeyError, TypeError, CheckpointError) as error:
            self._drop(path, _first(error))

    def _drop(self, path: Path, reason: str) -> None:
        self.say(f"warning: cached features in {path} are damaged ({reason}): they are computed again")
        self._entries = {key: entry for key, entry in self._entries.items() if entry.path != path}
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Entry:
    """Rows `first` to `first + count` of a file's `states`, mapped into memory."""

    path: Path
    states: torch.Tensor
    first: int
    count: int
    checksum: str


def _first(error: Exception) -> str:
    """An error's first line, or its kind."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def digest_of(*content: Any) -> str:
    """Hex sha256 of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _entries_of(path: Path, shelf: Shelf) -> dict[str, _Entry]:
    """The entries of a file; raises CheckpointError for one that is not what it says or belongs elsewhere."""
    with safe_open(path, framework="pt") as file:
        note = file.metadata() or {}
        if note.get("context") != shelf.context or list(file.keys()) != [_NAME]:
            raise CheckpointError("it belongs to something else")
        states = file.get_tensor(_NAME)
    index = json.loads(note["index"])
    if note.get("checksum") != digest_of(shelf.context, index):
        raise CheckpointError("its index was changed")
    total = sum(count for _, count, _ in index)
    if states.dtype != shelf.dtype or tuple(states.shape) != (total, *shelf.shape):
        raise CheckpointError("its shape is not the one it was written with")
    found, first = {}, 0
    for key, count, checksum in index:
        found[key] = _Entry(path, states, first, count, checksum)
        first += count
    return found


def _checksum(context: str, key: str, states: torch.Tensor) -> str:
    """Binds the bytes to the text and the context that they are of."""
    digest = hashlib.sha256(f"{context} {key} {len(states)}".encode())
    digest.update(states.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
