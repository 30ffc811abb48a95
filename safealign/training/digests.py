"""What a run was made from, in digests: two runs with the same ones differ in their settings alone."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from safealign.assets import asset_note, registry
from safealign.config.groups import SourceConfig
from safealign.config.roots import TrainConfig
from safealign.data.readers import READERS
from safealign.data.rendering import Renderer
from safealign.training.prepare import TrainingData
from safealign.training.stages import DPO, stages


def run_digests(config: TrainConfig, base: str, renderer: Renderer, data: TrainingData) -> dict[str, Any]:
    """`model` (`base`: the untouched weights' digest), `template`, `data` (training ids and labels), `sources`.

    Sources are known data sets (the pinned file's sha256) and local files; folders and hub data sets are covered by
    `data` alone.
    """
    names = [source.source for source in _sources(config)]
    sources = {name: digest for name in names if (digest := _source_digest(name))}
    template = hashlib.sha256(str(renderer.tokenizer.chat_template).encode()).hexdigest()
    return {"model": base, "template": template, "data": str(data.report["digest"]), "sources": sources}


def _sources(config: TrainConfig) -> list[SourceConfig]:
    own = config.data.preferences.sources if DPO in stages(config) else []
    return [*config.data.sources, *config.data.calibration, *own]


def _source_digest(name: str) -> str:
    if name in READERS and READERS[name].asset in registry():
        return asset_note(READERS[name].asset)["sha256"]
    path = Path(name).expanduser()
    if not path.is_file():
        return ""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
