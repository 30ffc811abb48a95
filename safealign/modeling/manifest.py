"""A folder's manifest: every file with its sha256, written last, so that a folder whose manifest holds is whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safealign.errors import CheckpointError
from safealign.files import sync, sync_folder

MANIFEST_FILE = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Lists every file of `folder` with its sha256 in `manifest.json`."""
    digests = {name: sha256_of(folder / name) for name in _files(folder)}
    (folder / MANIFEST_FILE).write_text(_text({"files": digests}), encoding="utf-8")


def damage(folder: Path, *needed: str, strict: bool = False) -> str | None:
    """What is wrong with a folder, in a few words that name the file, or None: one changed byte anywhere is noticed.

    `needed`: files that the manifest must list. `strict`: a file that it does not list is damage as well.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return f"{MANIFEST_FILE} is missing: it was not finished"
    try:
        text = path.read_text(encoding="utf-8")
        files = json.loads(text)["files"]
        # Compared as text: a changed blank or line end would leave the JSON's meaning alone.
        sound = text == _text({"files": files}) and isinstance(files, dict)
    except (OSError, ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        return f"{MANIFEST_FILE} is damaged"
    unlisted = [name for name in needed if name not in files]
    if unlisted:
        return f"{MANIFEST_FILE} does not list {unlisted[0]}"
    extra = sorted(set(_files(folder)) - set(files)) if strict else []
    return _bad_file(folder, files) or (f"{extra[0]} does not belong to it" if extra else None)


def _bad_file(folder: Path, files: dict[str, Any]) -> str | None:
    for name, digest in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256_of(folder / name) != digest:
            return f"{name} was changed or damaged since it was written"
    return None


def verify_manifest(folder: Path, *needed: str) -> None:
    """Raises CheckpointError that says what `damage` finds in an export."""
    problem = damage(folder, *needed)
    if problem is not None:
        raise CheckpointError(f"{folder} is incomplete or damaged: {problem}; export the run again")


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def publish(temporary: Path, final: Path) -> None:
    """Puts a finished folder in its place, on disk and whole even if the power fails in between.

    An older one is moved aside first (`NAME.old`) and removed after.
    """
    write_manifest(temporary)
    sync_folder(temporary)
    aside = final.with_name(final.name + ".old")
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(final, aside)
    os.replace(temporary, final)
    sync(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _files(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
