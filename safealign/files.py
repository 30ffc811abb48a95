"""Files that are either whole or absent, and on disk when we say so."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` (UTF-8) to `path` in one step, so that nobody ever meets half a file; returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def private_folder(folder: Path) -> Path:
    """Makes a folder that its owner alone can enter; one that was open is closed, with the folders in it.

    Returns it. Raises OSError where it cannot be made, or belongs to somebody else.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)
        for path in folder.iterdir():
            with suppress(FileNotFoundError):  # another process may be replacing it
                if path.is_dir() and not path.is_symlink():
                    path.chmod(0o700)
    return folder


def sync(path: Path) -> None:
    """Returns once a file, or the names in a folder, are on disk and not in memory alone."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """The same for everything in a folder, its own name apart."""
    for path in (*folder.rglob("*"), folder):
        if path.is_file() or path.is_dir():
            sync(path)
