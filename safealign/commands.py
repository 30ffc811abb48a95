"""The frame of every command: arguments to typed config, errors to one sentence, the resolved config on disk.

    def main(config: TrainConfig) -> None: ...

    if __name__ == "__main__":
        sys.exit(run_command(main))

Plain runs are composed here. Flags (`--help`, `--cfg job`, `-m`, …) are Hydra's own and go to Hydra.
"""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
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
from safealign.config.sweeps import (
    FAILED,
    FINISHED,
    JobRecord,
    job_name,
    launcher_problems,
    plan_of,
    swept_keys,
    varied,
    write_plan,
)
from safealign.errors import ConfigError, PreemptedError, RankError, SafealignError
from safealign.files import write_text
from safealign.ranks.world import adopt_slurm, is_main_process, read_world, world_size

# 75 is EX_TEMPFAIL of sysexits.h: nothing is wrong, run the same command again.
BROKEN, USER_ERROR, INTERRUPTED, PREEMPTED = 1, 2, 130, 75


def run_command(
    main: Callable[..., int | None],
    config_name: str = "config",
    *,
    argv: Sequence[str] | None = None,
    record: bool = True,
    tolerant: bool = False,
    after_sweep: Callable[[Path], object] | None = None,
    many_ranks: bool = False,
) -> int:
    """Compose the config from `argv` (default: the process's), call `main(config)`, return the exit status.

    `config_name`: the root config in `conf/`; `main` gets its dataclass (`TrainConfig`, `EvaluateConfig`, …).
    `record`: write the resolved config into the run directory before `main` starts (rank 0 only).
    `after_sweep`: called with a sweep's folder once all of its jobs have run.
    `tolerant`: call `main(config, problems)` even when the config has mistakes; `config` may then be None.
    `many_ranks`: may be started in several processes of one job; any other command is refused there.
    Statuses: what `main` returns (None is 0), 2 after a SafealignError, 75 after a preemption (run it again), 130 after
    Ctrl-C.
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
        root, status = _through_hydra(main, config_name, arguments, parsed, record)
        if root is not None and after_sweep is not None and is_main_process():
            after_sweep(root)
        return status
    except PreemptedError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(escape(str(error)))
        return PREEMPTED
    except SafealignError as error:
        _complain(error)
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
    _settle(config)
    run_dir = getattr(config, "run_dir", None)
    if record and run_dir is not None and is_main_process():
        _write(Path(run_dir), lambda: write_text(Path(run_dir) / f"{config_name}.yaml", to_yaml(config)))
    return main(config) or 0


def _settle(config: Any) -> None:
    if isinstance(config, EvaluateConfig) and config.run_dir is None:
        config.run_dir = str(_run_of(Path(config.model.path)))


def _write(run_dir: Path, act: Callable[[], object]) -> None:
    try:
        act()
    except OSError as error:
        reason = f"cannot be written ({error.strerror}); choose another"
        raise ConfigError(f"run_dir={run_dir}: {reason}") from error


def _run_of(export: Path) -> Path:
    """The run that an export belongs to; a place of its own for one that lies elsewhere or on a hub."""
    return export.parent if export.name == "export" else Path("outputs") / "evaluate" / export.name


def _complain(error: SafealignError, about: str = "") -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"{_tag()}[bold red]error:[/] {escape(about + str(error))}")


def _through_hydra(
    main: Callable[..., int | None], config_name: str, arguments: list[str], parsed: Any, record: bool
) -> tuple[Path | None, int]:
    """Hand flags to Hydra, with the shorthands written out and its errors in our words.

    Returns the folder of a sweep whose jobs have folders in it (else None), and the exit status.
    """
    if parsed.multirun and world_size() > 1:
        raise RankError("-m runs its jobs in one process: start it without torchrun, deepspeed or srun")
    overrides = write_out(parsed.overrides, config_name, parsed.config_dir)
    refuse(list(problems_of_overrides(overrides, config_name, parsed.config_dir).values()))
    if parsed.multirun and (parsed.cfg or parsed.info):
        raise ConfigError("--cfg and --info show one config and run nothing: leave -m and the lists of values out")
    sweeps = record and parsed.multirun and not (parsed.help or parsed.hydra_help)
    root, jobs = _plan_sweep(parsed.overrides, overrides, config_name, parsed.config_dir) if sweeps else (None, {})
    keys, status = swept_keys(overrides) if sweeps else [], [0]

    def job(composed: DictConfig) -> None:
        """One job of Hydra: the only one, or one of a sweep, perhaps in a process of its own."""
        config, problems = to_object(composed, config_name)
        if HydraConfig.get().mode != RunMode.MULTIRUN or root is None:
            refuse(problems)
            status[0] = max(status[0], _start(main, config, config_name, record))
            return
        number, given = HydraConfig.get().job.num, varied(HydraConfig.get().overrides.task, keys)
        folder = Path(HydraConfig.get().sweep.dir) / job_name(given, number)

        def start() -> int:
            """What is wrong with one combination of values is that job's own failure."""
            refuse(problems)
            config.run_dir = str(folder)
            return _start(main, config, config_name, True)

        status[0] = max(status[0], _one_of_many(start, folder, given))

    register()
    old_argv, old_setting = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    flags = [item for item in arguments if item not in parsed.overrides]
    place = [] if root is None else [f"hydra.sweep.dir={json.dumps(str(root))}"]
    try:
        # Hydra prints and exits by itself unless this is set; then it raises, and we explain.
        sys.argv, os.environ["HYDRA_FULL_ERROR"] = [old_argv[0], *flags, *overrides, *place], "1"
        hydra.main(config_path=str(conf_dir()), config_name=config_name, version_base="1.3")(job)()
    except (HydraException, OmegaConfBaseException) as error:
        reason = explain(error, config_name)
        if root is not None:
            _note_refused(root, jobs, reason)
        raise ConfigError(reason) from error
    except SystemExit as leaving:  # after --help and its kind
        return None, int(leaving.code or 0)
    finally:
        sys.argv = old_argv
        os.environ.pop("HYDRA_FULL_ERROR")
        if old_setting is not None:
            os.environ["HYDRA_FULL_ERROR"] = old_setting
    # A job in another process tells how it ended by its record alone.
    unfinished = root is not None and is_main_process() and any(not _has_finished(root / name) for name in jobs)
    return root, max(status[0], USER_ERROR if unfinished else 0)


def _has_finished(folder: Path) -> bool:
    record = JobRecord.read(folder)
    return record is not None and record.state == FINISHED


def _note_refused(root: Path, jobs: Mapping[str, dict[str, str]], reason: str) -> None:
    """Writes down why jobs have not started: Hydra composes all of them first, and refuses all for one of them."""
    for name, values in jobs.items() if is_main_process() else ():
        if JobRecord.read(root / name) is None:
            JobRecord(values, FAILED, f"never started: {reason}", attempts=0).write(root / name)


def _plan_sweep(
    overrides: list[str], written_out: list[str], config_name: str, config_dir: str | None
) -> tuple[Path | None, dict[str, dict[str, str]]]:
    """The folder that a sweep's jobs have theirs in, and what each varies; None for a command without a run directory.

    `written_out`: the overrides as Hydra gets them, by which it names what a job varies.
    Every value is tried in a config first: a job that cannot start is refused before the first has run for hours.
    Raises ConfigError that names every value that cannot be used.
    """
    refuse(launcher_problems(overrides))
    plan = plan_of(overrides)
    fixed = [item for item in overrides if not item.startswith("hydra")]
    probes = list(plan.probes) if plan else [[item for item in fixed if not swept_keys([item])]]
    examined = [examine(probe, config_name, config_dir) for probe in probes]
    refuse(list(dict.fromkeys(problem for _, problems in examined for problem in problems)))
    config = examined[0][0]
    if not hasattr(config, "run_dir"):
        return None, {}
    _settle(config)
    named = any(item.startswith("run_dir=") for item in overrides)
    root = Path(config.run_dir if named else f"{config.run_dir}-sweep")
    planned = plan_of(written_out)
    jobs = {job_name(values, number): values for number, values in enumerate(planned.values)} if planned else {}
    if jobs and is_main_process():
        _write(root, lambda: write_plan(root, jobs))
    return root, jobs


def _one_of_many(start: Callable[[], int], folder: Path, values: dict[str, str]) -> int:
    """Runs one job of a sweep and writes down what became of it; a mistake in one does not stop the others."""
    record = JobRecord.begin(folder, values) if is_main_process() else None

    def end(error: str) -> None:
        if record is not None:
            record.end(folder, error)

    try:
        status = start()
    except PreemptedError:
        end("preempted")
        raise  # the jobs after it have no machine either
    except SafealignError as error:
        end(str(error))
        _complain(error, f"{folder.name}: ")
        return USER_ERROR
    except Exception as error:
        end(f"{type(error).__name__}: {error}")
        traceback.print_exc()
        return BROKEN
    except BaseException:
        end("interrupted")
        raise
    end(f"exit status {status}" if status else "")
    return status


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
