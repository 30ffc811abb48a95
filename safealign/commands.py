"""The frame of every command: arguments to typed config, errors to one sentence, the resolved config on disk.

    def main(config: TrainConfig) -> None: ...

    if __name__ == "__main__":
        sys.exit(run_command(main))

Plain runs are composed here. Flags (`--help`, `--cfg job`, `-m`, …) are Hydra's own and go to Hydra.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape

from safealign.config.composing import examine, refuse, to_object, to_yaml
from safealign.config.overrides import conf_dir, explain, problems_of_overrides, write_out
from safealign.config.roots import EvaluateConfig, register
from safealign.errors import ConfigError, RankError, SafealignError
from safealign.files import write_text
from safealign.ranks.world import adopt_slurm, is_main_process, read_world, world_size

USER_ERROR, INTERRUPTED = 2, 130


def run_command(
    main: Callable[..., int | None],
    config_name: str = "config",
    *,
    argv: Sequence[str] | None = None,
    record: bool = True,
    tolerant: bool = False,
    many_ranks: bool = False,
) -> int:
    """Compose the config from `argv` (default: the process's), call `main(config)`, return the exit status.

    `config_name`: the root config in `conf/`; `main` gets its dataclass (`TrainConfig`, `EvaluateConfig`, …).
    `record`: write the resolved config into the run directory before `main` starts (rank 0 only).
    `tolerant`: call `main(config, problems)` even when the config has mistakes; `config` may then be None.
    `many_ranks`: may be started in several processes of one job; any other command is refused there.
    Statuses: what `main` returns (None is 0), 2 after a SafealignError, 130 after Ctrl-C.
    """
    arguments = _without_launcher_flags(sys.argv[1:] if argv is None else argv)
    try:
        adopt_slurm()
        if world_size() > 1 and not many_ranks:
            raise RankError("this command runs in one process: start it without torchrun, deepspeed or srun")
        parsed = get_args_parser().parse_args(arguments)
        if parsed.config_name or parsed.config_path:
            raise ConfigError(
                "write your own config as a recipe: --config-dir DIR +recipe=x reads DIR/recipe/x.yaml"
            )
        if arguments == parsed.overrides or _only_config_dir(parsed):
            return _run(main, config_name, parsed.overrides, parsed.config_dir, record, tolerant)
        return _through_hydra(main, config_name, arguments, parsed, record)
    except SafealignError as error:
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        console.print(f"{_tag()}[bold red]error:[/] {escape(str(error))}")
        return USER_ERROR
    except KeyboardInterrupt:
        Console(stderr=True).print("[yellow]interrupted[/]")
        return INTERRUPTED
    except Exception:
        if _tag():
            print(f"{_tag()}stopped by an error that it did not expect:", file=sys.stderr)
        raise


def _tag() -> str:
    """Which of several processes speaks; nothing where there is one."""
    try:
        world = read_world()
    except SafealignError:
        return f"rank {os.environ.get('RANK', '?')}: "
    return f"{world.name}: " if world.size > 1 else ""


def _run(
    main: Callable[..., int | None],
    config_name: str,
    overrides: Sequence[str],
    config_dir: str | None,
    record: bool,
    tolerant: bool,
) -> int:
    config, problems = examine(overrides, config_name, config_dir)
    if tolerant:
        return main(config, problems) or 0
    refuse(problems)
    return _start(main, config, config_name, record)


def _start(main: Callable[..., int | None], config: Any, config_name: str, record: bool) -> int:
    """Settle the run directory, write the config down, and go."""
    if isinstance(config, EvaluateConfig) and config.run_dir is None:
        config.run_dir = str(_run_of(Path(config.model.path)))
    run_dir = getattr(config, "run_dir", None)
    if record and run_dir is not None and is_main_process():
        try:
            write_text(Path(run_dir) / f"{config_name}.yaml", to_yaml(config))
        except OSError as error:
            reason = f"cannot be written ({error.strerror}); choose another"
            raise ConfigError(f"run_dir={run_dir}: {reason}") from error
    return main(config) or 0


def _run_of(export: Path) -> Path:
    """The run that an export belongs to; a place of its own for one that lies elsewhere or on a hub."""
    return export.parent if export.name == "export" else Path("outputs") / "evaluate" / export.name


def _through_hydra(
    main: Callable[..., int | None], config_name: str, arguments: list[str], parsed: Any, record: bool
) -> int:
    """Hand flags to Hydra, with the shorthands written out and its errors in our words."""
    overrides = write_out(parsed.overrides, config_name, parsed.config_dir)
    refuse(list(problems_of_overrides(overrides, config_name, parsed.config_dir).values()))
    status = [0]

    def job(composed: DictConfig) -> None:
        """One job of Hydra: the only one, or one of a sweep."""
        sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        config, problems = to_object(composed, config_name)
        refuse(problems)
        if sweep and getattr(config, "run_dir", None):
            # One folder per job of a sweep, or each would overwrite the last.
            config.run_dir = f"{config.run_dir}-{HydraConfig.get().job.num}"
        status[0] = max(status[0], _start(main, config, config_name, record))

    register()
    old_argv, old_setting = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    flags = [item for item in arguments if item not in parsed.overrides]
    try:
        # Hydra prints and exits by itself unless this is set; then it raises, and we explain.
        sys.argv, os.environ["HYDRA_FULL_ERROR"] = [old_argv[0], *flags, *overrides], "1"
        hydra.main(config_path=str(conf_dir()), config_name=config_name, version_base="1.3")(job)()
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, config_name)) from error
    except SystemExit as leaving:  # after --help and its kind
        return int(leaving.code or 0)
    finally:
        sys.argv = old_argv
        os.environ.pop("HYDRA_FULL_ERROR")
        if old_setting is not None:
            os.environ["HYDRA_FULL_ERROR"] = old_setting
    return status[0]


def _only_config_dir(parsed: Any) -> bool:
    given = {key for key, value in vars(parsed).items() if value}
    return given <= {"overrides", "config_dir"}


def _without_launcher_flags(arguments: Sequence[str]) -> list[str]:
    """Distributed launchers append `--local_rank=N`; the rank is in the environment as well."""
    kept: list[str] = []
    skip = False
    for item in arguments:
        if skip:
            skip = False
        elif re.fullmatch(r"--local[_-]rank", item):
            skip = True
        elif not re.match(r"--local[_-]rank=", item):
            kept.append(item)
    return kept
