"""The features' cache: what is known is not computed again, what is damaged is noticed, and it holds no text."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from safealign.data.rendering import Renderer
from safealign.errors import CheckpointError, DataError
from safealign.layout import build_layout, request_row
from safealign.modeling import feature_cache, hidden
from safealign.modeling.attach import attach
from safealign.modeling.feature_cache import FeatureCache
from safealign.modeling.hidden import HiddenExtractor
from safealign.modeling.safety_token import HeadSettings
from safealign.modeling.texts import Text
from safealign.modeling.tiny import tiny_model, tiny_tokenizer

RENDERER = Renderer(tiny_tokenizer())
WORDS = ("ocean", "weather", "an oak", "a kite", "bread and cheese", "seven islands in the north")


def _texts(words: tuple[str, ...] = WORDS) -> list[Text]:
    return [Text.prompt(RENDERER.render([{"role": "user", "content": f"Tell me about {word}"}])) for word in words]


class Shop:
    """A cache folder that counts what is computed and keeps what is said."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.said, self.computed = folder, [], 0
        self.cache = FeatureCache(folder, self.said.append)
        plain = HiddenExtractor._batch

        def counting(extractor: HiddenExtractor, texts: Any) -> Any:
            self.computed += len(texts)
            return plain(extractor, texts)

        monkeypatch.setattr(HiddenExtractor, "_batch", counting)

    def read(self, extractor: HiddenExtractor, texts: list[Text] | None = None) -> tuple[list[torch.Tensor], int]:
        """The features, and how many texts were computed for them."""
        self.computed = 0
        found = extractor.read(_texts() if texts is None else texts, cache=self.cache)
        return found, self.computed

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.rglob("*.safetensors"))


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    return Shop(tmp_path / "features", monkeypatch)


def _extractor(lm: Any = None, **changes: Any) -> HiddenExtractor:
    settings = {"layers": (0.5, 1.0), "pool": ("last", "mean")} | changes
    return HiddenExtractor(tiny_model() if lm is None else lm, **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_known_is_read_and_not_computed(shop: Shop, dtype: torch.dtype) -> None:
    wanted = [value.to(dtype) for value in _extractor().read(_texts())]
    first, computed = shop.read(_extractor(dtype=dtype))
    again, none = shop.read(_extractor(dtype=dtype))
    assert (computed, none) == (len(WORDS), 0)
    for found in (first, again):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, wanted, strict=True))
    more, one = shop.read(_extractor(dtype=dtype), [*_texts()[::-1], *_texts(("rain",)), _texts()[0]])
    assert one == 1 and len(more) == len(WORDS) + 2
    assert torch.equal(more[0], wanted[-1]) and torch.equal(more[-1], wanted[0])
    assert not shop.said


def test_features_lie_in_the_file_and_are_mapped(shop: Shop) -> None:
    found, _ = shop.read(_extractor())
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(shop.files[0]) in maps.read_text()
    assert len({value.untyped_storage().data_ptr() for value in found}) == 1


def test_everything_that_decides_is_in_the_key(shop: Shop) -> None:
    lm = tiny_model()
    shop.read(_extractor(lm))
    for other in (
        _extractor(lm, layers=(0.25, 1.0)),
        _extractor(lm, pool=("mean", "last")),
        _extractor(lm, dtype=torch.bfloat16),
        _extractor(tiny_model(seed=1)),
        _extractor(tiny_model("mistral")),
    ):
        assert shop.read(other)[1] == len(WORDS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert shop.read(_extractor(lm))[1] == len(WORDS)
    ids, (place,) = _texts()[0].input_ids, _texts()[0].places
    narrower = Text(ids, ((place[0]._replace(start=3),),))
    assert shop.read(_extractor(lm), [narrower])[1] == 1
    assert shop.read(_extractor(lm))[1] == 0


def test_a_weight_that_changes_anywhere_makes_other_features(shop: Shop) -> None:
    extractor = _extractor()
    before, _ = shop.read(extractor)
    with torch.no_grad():
        extractor.lm.model.layers[1].mlp.down_proj.weight[-1, -1] += 1.0
    after, computed = shop.read(extractor)
    assert computed == len(WORDS) and not torch.equal(before[0], after[0])


def test_adapters_count_and_so_does_switching_them_off(shop: Shop) -> None:
    plain, _ = shop.read(_extractor())
    lm = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).eval()
    extractor = _extractor(lm)
    adapted, computed = shop.read(extractor)
    assert computed == len(WORDS) and not torch.equal(plain[0], adapted[0])
    with lm.disable_adapter():
        off, computed = shop.read(extractor)
    assert computed == len(WORDS)
    torch.testing.assert_close(off[0], plain[0], atol=2e-6, rtol=1e-5)


def test_how_much_an_adapter_counts_is_part_of_it(shop: Shop) -> None:
    def read(extractor: HiddenExtractor) -> int:
        return shop.read(extractor)[1]

    def adapted(**more: Any) -> Any:
        torch.manual_seed(0)
        settings = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False, "lora_alpha": 4} | more
        return get_peft_model(tiny_model(), LoraConfig(**settings)).eval()

    assert read(_extractor(adapted())) == len(WORDS) and read(_extractor(adapted())) == 0
    for more in ({"lora_alpha": 8}, {"use_rslora": True}, {"alpha_pattern": {"layers.0.self_attn.q_proj": 16}}):
        assert read(_extractor(adapted(**more))) == len(WORDS)
    # The same scales in other layers are another model.
    assert read(_extractor(adapted(alpha_pattern={"layers.1.self_attn.q_proj": 16}))) == len(WORDS)
    lm = adapted()
    extractor = _extractor(lm)
    assert read(extractor) == 0
    for layer in lm.modules():
        if hasattr(layer, "scale_layer"):
            layer.scale_layer(0.5)
    assert read(extractor) == len(WORDS)


def test_the_safety_tokens_vector_counts_where_it_takes_part(shop: Shop) -> None:
    parts = attach(tiny_model(), HeadSettings((0.5,), ("row", "mean")))
    rendered = RENDERER.render([{"role": "user", "content": "Tell me about the ocean"}])
    laid_out = Text.of_layout(rendered.input_ids, build_layout(rendered, [request_row(rendered)]))
    rows, bare = HiddenExtractor.of_head(parts), HiddenExtractor(parts.lm, parts=parts)
    assert shop.read(rows, [laid_out])[1] == shop.read(bare)[1] // len(WORDS) == 1
    with torch.no_grad():
        parts.token.weight.add_(0.5)
    assert shop.read(rows, [laid_out])[1] == 1 and shop.read(bare)[1] == 0


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


def _tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _swap_entries(path: Path) -> None:
    """Gives one text another's features, in a file that is sound in itself."""
    with safe_open(path, "pt") as file:
        states, note = file.get_tensor("states").clone(), file.metadata()
    save_file({"states": states.flip(0)}, path, metadata=note)


def _poison(path: Path) -> None:
    with safe_open(path, "pt") as file:
        states, note = file.get_tensor("states").clone(), file.metadata()
    save_file({"states": states * 0.5}, path, metadata=note)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a bit of the states": lambda path: _flip(path, path.stat().st_size - 5),
    "a bit of the index": lambda path: _flip(path, path.read_bytes().index(b"[[") + 12),
    "torn": _tear,
    "empty": lambda path: path.write_bytes(b""),
    "other features": _poison,
    "another text's features": _swap_entries,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_noticed_and_mended_with_a_warning(shop: Shop, damage: str) -> None:
    wanted, _ = shop.read(_extractor())
    wanted = [value.clone() for value in wanted]
    DAMAGE[damage](shop.files[0])
    found, computed = shop.read(_extractor())
    assert computed == len(WORDS) and len(shop.said) == 1
    assert "damaged" in shop.said[0] and str(shop.folder) in shop.said[0]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, wanted, strict=True))
    assert shop.read(_extractor())[1] == 0 and len(shop.said) == 1


def test_a_file_of_another_model_is_not_believed(shop: Shop) -> None:
    shop.read(_extractor())
    (mine,) = shop.files
    shop.read(_extractor(tiny_model(seed=1)))
    (other,) = [path for path in shop.files if path != mine]
    other.write_bytes(mine.read_bytes())
    assert shop.read(_extractor(tiny_model(seed=1)))[1] == len(WORDS)
    assert len(shop.said) == 1 and "something else" in shop.said[0]


def test_no_text_and_no_ids_are_kept(shop: Shop) -> None:
    shop.read(_extractor())
    for path in shop.files:
        with safe_open(path, "pt") as file:
            said = str(file.metadata()) + path.name
            assert not any(word in said for word in WORDS) and file.keys() == ["states"]
        content = path.read_bytes()
        assert not any(word.encode() in content for word in WORDS)
        for text in _texts():
            assert torch.tensor(text.input_ids).numpy().tobytes() not in content


def test_an_interrupted_extraction_goes_on_where_it_was(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = _extractor(batch_size=2)

    def stop(done: int) -> None:
        if shop.computed == 4:
            raise KeyboardInterrupt

    shop.computed = 0
    with pytest.raises(KeyboardInterrupt):
        extractor.read(_texts(), cache=shop.cache, progress=stop)
    done: list[int] = []
    found = extractor.read(_texts(), cache=shop.cache, progress=done.append)
    assert done == [4, 2] and shop.computed == 6
    for mine, theirs in zip(found, _extractor().read(_texts()), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=1e-5)


def _extract_and_die(folder: str) -> None:
    """A process that is killed, not asked to stop, once two files of two texts each are written."""
    hidden._PER_FILE = 2
    seen: list[int] = []

    def kill(done: int) -> None:
        seen.append(done)
        if len(seen) == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    _extractor(batch_size=1).read(_texts(), cache=FeatureCache(Path(folder)), progress=kill)


def test_a_killed_extraction_goes_on_where_it_was(shop: Shop) -> None:
    process = multiprocessing.get_context("fork").Process(target=_extract_and_die, args=(str(shop.folder),))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and len(shop.files) == 2
    _, computed = shop.read(_extractor())
    assert computed == 2 and not shop.said


def test_states_that_are_no_numbers_are_not_kept(shop: Shop) -> None:
    lm = tiny_model()
    with torch.no_grad():
        lm.model.layers[0].mlp.down_proj.weight.fill_(float("inf"))
    with pytest.raises(DataError, match="not finite"):
        shop.read(_extractor(lm))
    assert not shop.files


def test_the_default_folder_is_in_the_asset_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEALIGN_CACHE", str(tmp_path))
    _extractor().read(_texts()[:1], cache=FeatureCache())
    assert len(list((tmp_path / "features").rglob("*.safetensors"))) == 1


@pytest.mark.parametrize("error", [SafetensorError("Io: no space left"), OSError(28, "No space left on device")])
def test_what_cannot_be_written_is_said_in_one_sentence(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(feature_cache, "save_file", full)
    for per_file in (2, 256):  # in the middle, and what is left at the end
        monkeypatch.setattr(hidden, "_PER_FILE", per_file)
        with pytest.raises(CheckpointError, match="free some space or set SAFEALIGN_CACHE"):
            shop.read(_extractor(batch_size=2))
    assert not [path for path in shop.folder.rglob("*") if path.is_file()] and not shop.said


def test_a_failed_write_does_not_hide_what_failed_first(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Io: no space left")

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(feature_cache, "save_file", full)
    with pytest.raises(KeyboardInterrupt):
        _extractor(batch_size=2).read(_texts(), cache=shop.cache, progress=stop)
    assert len(shop.said) == 1 and "free some space" in shop.said[0]


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), RuntimeError("Too many open files (24)")])
def test_a_file_that_cannot_be_read_now_is_left_as_it_is(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def busy(*_: Any, **__: Any) -> Any:
        raise error

    wanted, _ = shop.read(_extractor())
    before = [(path, path.read_bytes()) for path in shop.files]
    with monkeypatch.context() as patch:
        patch.setattr(feature_cache, "safe_open", busy)
        assert shop.cache.shelf(_extractor()._context(), (2, 2, 32), torch.float32).get("any") is None
        assert len(shop.said) == 1 and "cannot be read" in shop.said[0] and "Too many open files" in shop.said[0]
        assert [(path, path.read_bytes()) for path in shop.files] == before
        found, _ = shop.read(_extractor())
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, wanted, strict=True))
    assert shop.read(_extractor())[1] == 0


@pytest.mark.parametrize("given", [True, False])
def test_nobody_else_can_enter_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool) -> None:
    monkeypatch.setenv("SAFEALIGN_CACHE", str(tmp_path))
    folder = tmp_path / "features"
    cache = FeatureCache(folder if given else None)
    _extractor().read(_texts()[:1], cache=cache)
    (shelf,) = folder.iterdir()
    assert shelf.stat().st_mode & 0o777 == 0o700
    shelf.chmod(0o755)
    folder.chmod(0o755)
    _extractor().read(_texts()[:1], cache=cache)
    assert shelf.stat().st_mode & 0o777 == 0o700
    assert folder.stat().st_mode & 0o777 == (0o755 if given else 0o700)  # the caller's own is the caller's to close
