"""What a user typed after a command: shorthands written out, every mistake found before Hydra composes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import get_type_hints

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from safealign.config.fields import nearest, suggestion
from safealign.config.roots import ROOTS


def conf_dir() -> Path:
    """The folder of the YAML files: `safealign/conf` in an installed package, `conf` beside it in a checkout.

    Raises FileNotFoundError when neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no conf folder in or beside {package}; install safealign again")


def options_of(group: str, config_dir: str | Path | None = None) -> list[str]:
    """The option names of a config group, those of the user's `config_dir` included; empty: no such group."""
    folders = [conf_dir() / group] + ([Path(config_dir) / group] if config_dir else [])
    return sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})


def all_groups(config_dir: str | Path | None = None) -> list[str]:
    """The names of every config group."""
    folders = [conf_dir()] + ([Path(config_dir)] if config_dir else [])
    return sorted({item.name for folder in folders for item in folder.iterdir() if any(item.glob("*.yaml"))})


def groups_in(config_name: str) -> list[str]:
    """The groups in a root config's defaults list: what `group=option` can choose from."""
    defaults = yaml.safe_load((conf_dir() / f"{config_name}.yaml").read_text(encoding="utf-8"))["defaults"]
    return [next(iter(item)) for item in defaults if isinstance(item, dict)]


def known_keys(config_name: str) -> list[str]:
    """Every dotted key of a root config, sections included, in the schema's order."""
    return list(_flatten(ROOTS[config_name]))


def write_out(
    overrides: Sequence[str], config_name: str = "config", config_dir: str | Path | None = None
) -> list[str]:
    """Write out the shorthands: `model=<hub id or path>`, and `debug=` after the recipe, so that it wins."""
    has_group = "model" in groups_in(config_name)
    result, last = [], []
    for item in overrides:
        key, _, value = item.partition("=")
        if key == "model" and not has_group:
            swept = _is_list(item) and not Path(value).exists()  # a folder's name may hold a comma
            result.append(f"model.path={value}" if swept else f"model={{path: {_quoted(value)}}}")
        elif key == "model" and _names_a_model(value, options_of("model", config_dir)):
            name, path = _quoted(_short_name(value)), _quoted(value)
            result += ["model=custom", f"model.name={name}", f"model.path={path}"]
        else:
            result.append(item)
            # Of two choices for one group, and of two values for one key, Hydra keeps the later file's.
            if key == "debug" and value != "none":
                last.append(f"+debug@_global_={value}")
    return result + last


def problems_of_overrides(
    overrides: Sequence[str], config_name: str = "config", config_dir: str | Path | None = None
) -> dict[str, str]:
    """Every override that cannot be used -> one line that says why and what was probably meant."""
    found: dict[str, str] = {}
    for item in overrides:
        try:
            problem = _problem(OverridesParser.create().parse_override(item), config_name, config_dir)
        except HydraException as error:
            problem = f"{item}: cannot be read ({_first_line(error)}); quote what is special: key=\"'a=b'\""
        if problem is not None:
            found[item] = problem
    return found


def explain(error: Exception, config_name: str) -> str:
    """One sentence for an error that Hydra or OmegaConf raised while composing the files."""
    chain: list[BaseException] = [error]
    while (deeper := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(deeper)
    where = _first_line(error).split(": ", 1)[0] + ": " if _first_line(error).startswith("In '") else ""
    for link in chain:
        empty = re.search(r"interpolation '\$\{([\w.]+)\}'.* 'None'", _first_line(link))
        if empty is not None:
            return f"{empty[1]}: a value is needed; give {empty[1]}=…"
        if isinstance(link, OmegaConfBaseException) and link.full_key:
            if _owner(ROOTS[config_name], link.full_key):
                return f"{where}{link.full_key}: {_first_line(link)}"
            return f"{where}{_no_such_key(link.full_key, config_name)}"
    return " ".join(str(error).split())


def _problem(item: Override, config_name: str, config_dir: str | Path | None) -> str | None:
    key, text = item.key_or_group, item.input_line
    if key.startswith("hydra") or item.package is not None or item.is_delete():
        return None
    options = options_of(key, config_dir)
    value = None if item.is_sweep_override() else item.value()
    if options and not isinstance(value, dict):
        return _group_problem(item, options, config_name)
    owner = _owner(ROOTS[config_name], key)
    if owner is None:
        return f"{text}: {_no_such_key(key, config_name)}"
    if item.is_sweep_override() or set(owner[1]) & set(".["):
        return None
    try:
        OmegaConf.update(OmegaConf.structured(owner[0]), owner[1], value, merge=True)
    except OmegaConfBaseException as error:
        return f"{text}: {_first_line(error)}"
    return None


def _group_problem(item: Override, options: list[str], config_name: str) -> str | None:
    group, text = item.key_or_group, item.input_line
    if not item.is_add() and group not in groups_in(config_name):
        if config_name == "config":
            return f"{text}: write +{text} (it is added to the config, not chosen instead of something)"
        return f"{text}: this command has no group '{group}'{suggestion(group, groups_in(config_name))}"
    if item.is_sweep_override():
        return None
    value = item.value()
    for choice in value if isinstance(value, list) else [value]:
        if str(choice) not in options:
            return f"{text}: '{choice}' is not an option of {group}{suggestion(str(choice), options)}"
    return None


def _no_such_key(key: str, config_name: str) -> str:
    top = [] if "." in key else [*groups_in(config_name), "recipe"]
    match = nearest(key, [*known_keys(config_name), *top])
    hint = f"did you mean '{match}'?" if match else "--cfg job prints every key"
    return f"no such key '{key}'; {hint}"


def _owner(root: type, key: str) -> tuple[type, str] | None:
    """The dataclass that holds `key` and the key within it; None when the schema has no such key."""
    first, _, rest = key.partition(".")
    name = first.split("[", 1)[0]
    hint = get_type_hints(root).get(name)
    if hint is None:
        return None
    if not rest:
        return root, first
    if is_dataclass(hint) and isinstance(hint, type):
        return _owner(hint, rest)
    # Below a list or a free mapping every key may stand.
    return (root, key) if "list" in str(hint) or "dict" in str(hint) else None


def _flatten(root: type, prefix: str = "") -> Iterator[str]:
    for key, hint in get_type_hints(root).items():
        yield f"{prefix}{key}"
        if is_dataclass(hint) and isinstance(hint, type):
            yield from _flatten(hint, f"{prefix}{key}.")


def _names_a_model(value: str, options: Sequence[str]) -> bool:
    """Is `model=value` a hub id, asset or path rather than a group option, well or badly spelt?"""
    if not value or value in options or value.startswith(("{", "[", "$")) or "," in value:
        return False
    looks_like_path = "/" in value or "\\" in value or value.startswith((".", "~")) or Path(value).exists()
    return looks_like_path or nearest(value, options, cutoff=0.7) is None


def _is_list(item: str) -> bool:
    """Does an override carry several values, for a sweep?"""
    try:
        return bool(OverridesParser.create().parse_override(item).is_sweep_override())
    except HydraException:
        return False


def _short_name(value: str) -> str:
    last = value.strip("'\"").replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    return last if last.strip(".~") else "custom"


def _quoted(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value
    return "'" + value.replace("'", "\\'") + "'"


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
