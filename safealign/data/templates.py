"""Reads jailbreak templates (YAML files with a `value` that holds `{{ prompt }}`) from a folder."""

from __future__ import annotations

from pathlib import Path

import yaml

from safealign.assets import data_path
from safealign.data.wrapping import Template, usable
from safealign.errors import DataError

ASSET = "jailbreak_templates"


def load_templates(folder: str | Path | None = None, offline: bool | None = None) -> tuple[Template, ...]:
    """The usable templates of a folder (the asset's by default), sorted by file name.

    Raises DataError naming the file that is no template, AssetError when the asset cannot be fetched.
    """
    place = data_path(ASSET, offline) if folder is None else Path(folder)
    return usable({path.stem: _value(path) for path in sorted(place.glob("*.y*ml"))})


def _value(path: Path) -> str:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return str(content["value"])
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no jailbreak template: it needs `value` with {{{{ prompt }}}} ({error})") from error
