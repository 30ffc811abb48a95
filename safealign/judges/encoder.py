"""Sentence embeddings by a small encoder (MiniLM): near-duplicates, and the embedding baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from safealign.assets import model_path
from safealign.errors import AssetError


class SentenceEncoder:
    """Mean-pooled, normalised embeddings of a BERT-like encoder in fp32; cosine = dot product."""

    def __init__(
        self,
        name: str | Path = "minilm",
        *,
        device: str = "cpu",
        max_tokens: int = 256,
        offline: bool | None = None,
    ) -> None:
        """Load `name`: an asset, a folder or a hub id. Weights must be safetensors.

        Args:
            name: the encoder.
            device: where it runs.
            max_tokens: longer texts are cut (256 is what MiniLM was made for).
            offline: True never downloads.

        Raises:
            AssetError: unknown name, cannot be fetched, or no safetensors weights.
        """
        folder = str(model_path(str(name), offline=offline))
        self._tokenizer, self._model = _load(folder)
        self._model.to(device).eval()
        self._device = device
        self._max_tokens = max_tokens

    @property
    def width(self) -> int:
        """Length of an embedding (384 for MiniLM)."""
        return int(self._model.config.hidden_size)

    @torch.no_grad()
    def encode(
        self, texts: Sequence[str], batch_size: int = 32, progress: Callable[[int], None] | None = None
    ) -> torch.Tensor:
        """Embeddings of `texts`, fp32 [N, width] on the CPU; `progress` gets each batch's number of texts."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # equal lengths pad least
        found = torch.empty(len(texts), self.width)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            found[chosen] = self._embed([texts[index] for index in chosen]).cpu()
            if progress is not None:
                progress(len(chosen))
        return found

    def _embed(self, texts: list[str]) -> torch.Tensor:
        batch = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        ).to(self._device)
        states = self._model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].to(states.dtype)
        return normalize((states * mask).sum(1) / mask.sum(1).clamp(min=1e-9), dim=-1)


def _load(folder: str) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer  # seconds to import: only where an encoder is wanted

    try:
        model = AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
        return AutoTokenizer.from_pretrained(folder), model
    except (OSError, ValueError) as error:
        raise AssetError(
            f"{folder}: not an encoder with safetensors weights ({error}); pick another model"
        ) from error
