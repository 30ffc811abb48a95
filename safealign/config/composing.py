"""From the YAML files and overrides to one typed, checked config."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_type_hints

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from safealign.config.fields import problems_of, suggestion
from safealign.config.groups import DecodingConfig
from safealign.config.overrides import conf_dir, explain, options_of, problems_of_overrides, write_out
from safealign.config.roots import ROOTS, register
from safealign.errors import ConfigError

_HYDRA_IS_GLOBAL = threading.Lock()


def compose(
    overrides: Sequence[str] = (), config_name: str = "config", config_dir: str | Path | None = None
) -> Any:
    """The config of a command as its root dataclass, e.g. `TrainConfig` for `config`.

    `overrides` are what a user would type after the command (`["+recipe=llama_lora", "debug=smoke"]`);
    `config_dir` is a folder of more config files. Raises ConfigError that names every mistake and the nearest
    match of each.
    """
    config, problems = examine(overrides, config_name, config_dir)
    refuse(problems)
    return config


def examine(
    overrides: Sequence[str] = (), config_name: str = "config", config_dir: str | Path | None = None
) -> tuple[Any, list[str]]:
    """The config without the overrides that cannot be used, and every mistake in one line each.

    The config is None when what is left cannot be composed either (a bad file, a value that is missing).
    """
    if config_dir is not None and not Path(config_dir).is_dir():
        return None, [f"--config-dir {config_dir}: no such folder"]
    items = write_out(overrides, config_name, config_dir)
    bad = problems_of_overrides(items, config_name, config_dir)
    problems = list(bad.values())
    try:
        composed = _compose([item for item in items if item not in bad], config_name, config_dir)
        config, more = to_object(composed, config_name)
    except (HydraException, OmegaConfBaseException) as error:
        config, more = None, [explain(error, config_name)]
    return config, problems + more


def load_option(group: str, option: str, overrides: Sequence[str] = ()) -> Any:
    """One option of a group of the training config as its dataclass: `load_option("defense", "undefended")`.

    Raises ConfigError for an option that does not exist.
    """
    options = options_of(group)
    if option not in options:
        raise ConfigError(f"'{option}' is not an option of {group}{suggestion(option, options)}")
    if group not in get_type_hints(ROOTS["config"]):
        raise ConfigError(f"options of '{group}' spread over the whole config; compose it instead")
    return getattr(compose([f"{group}={option}", *overrides]), group)


def decoding_changes(decoding: DecodingConfig) -> dict[str, Any]:
    """The decoding keys whose value is not the group's own; everything else is for the export to say.

    An export's thresholds were calibrated under its schedule and rules, which the group's defaults must not replace.
    """
    standard = asdict(load_option("decoding", "default"))
    return {key: value for key, value in asdict(decoding).items() if standard[key] != value}


def to_object(composed: DictConfig, config_name: str) -> tuple[Any, list[str]]:
    """The composed config as its root dataclass (None when a value is missing), and what is wrong with it."""
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        return None, [f"{key}: a value is needed; give {key}=…" for key in missing]
    config = OmegaConf.to_object(composed)
    if not isinstance(config, ROOTS[config_name]):
        raise ConfigError(f"{config_name}.yaml must list schema_{config_name} first in its defaults")
    return config, problems_of(config)


def to_yaml(config: Any) -> str:
    """The config (a root dataclass) as YAML, every value resolved; composed again it is the same config."""
    return OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True)


def refuse(problems: Sequence[str]) -> None:
    """Raise one ConfigError with every line of `problems`; nothing when there are none."""
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        lines = "\n".join(f"  - {line}" for line in problems)
        raise ConfigError(f"the config has several mistakes:\n{lines}")


def _compose(items: list[str], config_name: str, config_dir: str | Path | None) -> DictConfig:
    register()
    extra = [] if config_dir is None else [f"hydra.searchpath=['file://{Path(config_dir).resolve()}']"]
    with _HYDRA_IS_GLOBAL, _hydra_set_aside(), initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra_compose(config_name, [*items, *extra])


@contextmanager
def _hydra_set_aside() -> Iterator[None]:
    """Inside a job of Hydra's own (a sweep) there is a Hydra already, which refuses a second."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = outer
