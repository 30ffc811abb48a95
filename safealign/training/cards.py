"""The model card of an export: written with it, and again with the figures once it was evaluated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safealign.assets import asset_note, registry
from safealign.config.overrides import options_of
from safealign.data.readers import READERS
from safealign.data.records import SAMPLED
from safealign.modeling.checkpoint import SafetyCard
from safealign.modeling.loading import ADAPTER_FILE, BASE_FILE
from safealign.modeling.manifest import write_manifest
from safealign.reporting.model_card import CardFacts, write_model_card
from safealign.reporting.summary import Summary


def write_card(folder: Path, card: SafetyCard, summary: Summary | None = None) -> None:
    """Writes `README.md` into an export: base, data with licences and digests, thresholds, results, limits."""
    base = str(card.training.get("base", "unknown"))
    note = asset_note(base) if base in registry() else {}
    recipe = str(card.training.get("recipe", folder.parent.name))
    facts = CardFacts(
        name=recipe,
        base=base,
        licence=note.get("licence", "other").lower(),
        base_sha256=note.get("sha256", ""),
        command=f"python -m safealign.train +recipe={recipe}" if recipe in options_of("recipe") else "",
        data=data_sets(card.training.get("records", {})),
        adapter=(folder / ADAPTER_FILE).exists(),
        reference=(folder / BASE_FILE).exists() and not (folder / ADAPTER_FILE).exists(),
    )
    write_model_card(folder, facts, card.to_dict(), summary)


def add_results(export: Path, card: SafetyCard, summary: Summary) -> None:
    """Writes the card again with the figures, and the manifest after it."""
    write_card(export, card, summary)
    write_manifest(export)


def data_sets(records: Mapping[str, int]) -> list[dict[str, Any]]:
    """Rows per source (`records`: "source/label" → rows), with package, licence and digest where they are known."""
    rows: Counter[str] = Counter()
    for name, count in records.items():
        rows[name.rpartition("/")[0]] += count
    return [{**_note(name), "name": name, "rows": count} for name, count in sorted(rows.items())]


def _note(name: str) -> dict[str, str]:
    source = name.partition(f"+{SAMPLED}")[0]
    if source in READERS and READERS[source].asset in registry():
        return asset_note(READERS[source].asset)
    return {"licence": "the base model's own text"} if source.startswith(SAMPLED) else {}
