"""The sentence encoder: shapes, order, padding and pooling, errors; the real MiniLM where it is cached."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safealign.errors import AssetError, SafealignError
from safealign.judges.encoder import SentenceEncoder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT with a word-piece vocabulary of a few words, saved as safetensors."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("encoder")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "bread",
        "water",
        "salt",
        "flour",
        "oven",
        "hot",
        "is",
        "the",
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def test_embeddings_are_normalised_and_in_order(tiny: Path) -> None:
    encoder = SentenceEncoder(tiny)
    texts = ["the bread is hot", "water", "the oven is hot hot hot hot", "salt"]
    found = encoder.encode(texts, batch_size=2)
    assert found.shape == (4, encoder.width) and found.dtype == torch.float32
    assert torch.allclose(found.norm(dim=1), torch.ones(4), atol=1e-5)
    for text, row in zip(texts, found, strict=True):
        assert torch.allclose(encoder.encode([text])[0], row, atol=1e-5)  # padding changes nothing


def test_progress_counts_every_text(tiny: Path) -> None:
    seen: list[int] = []
    assert (
        SentenceEncoder(tiny).encode(["bread"] * 5, batch_size=2, progress=seen.append).shape[0]
        == sum(seen)
        == 5
    )
    assert SentenceEncoder(tiny).encode([]).shape == (0, 16)


def test_long_texts_are_cut(tiny: Path) -> None:
    encoder = SentenceEncoder(tiny, max_tokens=8)
    assert torch.equal(encoder.encode(["bread " * 500]), encoder.encode(["bread " * 100]))


def test_weights_must_be_safetensors(tiny: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(AssetError, match="safetensors"):
        SentenceEncoder(tmp_path)


@pytest.mark.slow
def test_minilm_knows_meaning() -> None:
    try:
        encoder = SentenceEncoder("minilm", offline=True)
    except SafealignError:
        pytest.skip("minilm is not in the cache")
    near, same, far = encoder.encode(
        ["How do I bake bread?", "What is the way to bake a loaf?", "The moon is far."]
    )
    assert near @ same > 0.6 > 0.3 > near @ far
