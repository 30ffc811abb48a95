"""Members of wheels and source archives, copied out and digested; nothing is ever installed or run."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO

from safealign.errors import AssetError

_CHUNK = 1 << 20


def file_digest(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """sha256 over the sorted lines "digest  name" of a folder's files, in hex."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = "".join(f"{file_digest(folder / name)}  {name}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest()


def digest(path: Path) -> str:
    """`folder_digest` of a folder, `file_digest` of a file."""
    return folder_digest(path) if path.is_dir() else file_digest(path)


def extract(archive: Path, member: str, target: Path, folder: bool) -> None:
    """Copy a member to the file `target`, or all members that match the pattern into the folder `target`.

    Raises AssetError for an archive that cannot be read or does not hold the member.
    """
    try:
        with _opened(archive) as opened:
            found = [(name, file) for name, file in opened.items() if _matches(name, member)]
            if not found:
                raise AssetError(
                    f"{archive.name} does not contain {member}: the release was changed after it was pinned; "
                    "update safealign, or point to a local copy of the file"
                )
            for name, opener in found:
                _copy(opener, target / Path(name).name if folder else target)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise AssetError(
            f"{archive.name} is damaged ({error}): run the command again to download it anew"
        ) from error


def _matches(name: str, member: str) -> bool:
    """`*` matches within one folder; a path in a source archive starts with a folder "name-version/"."""
    candidates = (name, name.partition("/")[2])
    return any(fnmatchcase(c, member) and c.count("/") == member.count("/") for c in candidates)


class _Opener:
    """One member, opened when it is copied."""

    def __init__(self, archive: zipfile.ZipFile | tarfile.TarFile, name: str) -> None:
        self.archive, self.name = archive, name

    def open(self) -> IO[bytes]:
        """The member's bytes as a stream."""
        if isinstance(self.archive, zipfile.ZipFile):
            return self.archive.open(self.name)
        stream = self.archive.extractfile(self.name)
        if stream is None:
            raise AssetError(f"{self.name} in the archive is not a plain file")
        return stream


@contextmanager
def _opened(archive: Path) -> Iterator[dict[str, _Opener]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            yield {
                info.filename: _Opener(wheel, info.filename) for info in wheel.infolist() if not info.is_dir()
            }
    else:
        with tarfile.open(archive) as sdist:
            yield {info.name: _Opener(sdist, info.name) for info in sdist.getmembers() if info.isfile()}


def _copy(opener: _Opener, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with opener.open() as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy, _CHUNK)
