"""What a run was made from, in digests: two runs with the same ones differ in their settings alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safealign.assets import asset_note, registry
from safealign.config.groups import SourceConfig
from safealign.config.roots import TrainConfig
from safealign.data.readers import READERS
from safealign.data.rendering import Renderer
from safealign.training.stages import DPO, stages


def run_digests(config: TrainConfig, base: str, renderer: Renderer, report: Mapping[str, Any]) -> dict[str, Any]:
    """`model` (`base`: the untouched weights' digest), `template`, `data` (training ids and labels), `sources`.

    `report`: of the training data; a stream has no digest of its own. Sources are known data sets (the pinned file's
    sha256) and local files; folders and hub data sets are covered by `data` alone.
    """
    names = [source.source for source in _sources(config)]
    sources = {name: digest for name in names if (digest := _source_digest(name))}
    template = hashlib.sha256(str(renderer.tokenizer.chat_template).encode()).hexdigest()
    return {"model": base, "template": template, "data": str(report.get("digest", "streamed")), "sources": sources}


def _sources(config: TrainConfig) -> list[SourceConfig]:
    pairs = config.data.preferences.sources if DPO in stages(config) else []
    documents = config.data.documents.sources if config.objective.name == "pretraining" else []
    return [*config.data.sources, *config.data.calibration, *pairs, *documents]


def _source_digest(name: str) -> str:
    if name in READERS and READERS[name].asset in registry():
        return asset_note(READERS[name].asset)["sha256"]
    path = Path(name).expanduser()
    if not path.is_file():
        return ""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
