"""A sweep (`-m a=1,2 b=x,y`): its jobs, planned before any starts, their names, and what becomes of each on disk."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override

from safealign.errors import ConfigError
from safealign.files import write_text

JOB_FILE, PLAN_FILE = "job.json", "sweep.json"
RUNNING, FINISHED, FAILED = "running", "finished", "failed"
LAUNCHERS = {
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit_local": "hydra_plugins.hydra_submitit_launcher",
    "submitit_slurm": "hydra_plugins.hydra_submitit_launcher",
}
_LONGEST_NAME = 120  # characters: file names end at 255 bytes, and tables are read by people


@dataclass(frozen=True)
class Plan:
    """What each override may be, in the order in which they were typed; one job per combination.

    `keys`: those that are swept, a list of one value included. Hydra's own overrides are no part of it.
    """

    choices: tuple[tuple[str, ...], ...]
    keys: tuple[str, ...] = ()

    @property
    def jobs(self) -> list[tuple[str, ...]]:
        """The overrides of every job, in Hydra's order."""
        return list(product(*self.choices))

    @property
    def probes(self) -> Iterator[tuple[str, ...]]:
        """As few jobs as show every value once: the first, and the first with one other value."""
        first = tuple(options[0] for options in self.choices)
        yield first
        for place, options in enumerate(self.choices):
            yield from (first[:place] + (option,) + first[place + 1 :] for option in options[1:])

    @property
    def values(self) -> list[dict[str, str]]:
        """What each job's swept keys are set to."""
        return [varied(job, self.keys) for job in self.jobs]


def plan_of(overrides: Sequence[str]) -> Plan | None:
    """The plan of a sweep's overrides; None where only Hydra can tell the values (`glob`, `interval`).

    Raises ConfigError when `run_dir` itself is swept.
    """
    choices = []
    for item in overrides:
        parsed = OverridesParser.create().parse_override(item)
        if parsed.is_hydra_override():
            continue
        if parsed.is_sweep_override() and parsed.key_or_group == "run_dir":
            raise ConfigError(f"{item}: the jobs of a sweep have folders of their own below one run_dir: give one")
        if parsed.is_sweep_override() and not _is_listed(parsed):
            return None
        options = (
            [f"{parsed.get_key_element()}={value}" for value in parsed.sweep_string_iterator()]
            if (parsed.is_sweep_override())
            else [item]
        )
        choices.append(tuple(options))
    return Plan(tuple(choices), tuple(swept_keys(overrides)))


def swept_keys(overrides: Sequence[str]) -> list[str]:
    """Keys of the overrides that carry several values."""
    parsed = [OverridesParser.create().parse_override(item) for item in overrides]
    return [
        _key(item.get_key_element()) for item in parsed if item.is_sweep_override() and not item.is_hydra_override()
    ]


def varied(job: Sequence[str], keys: Sequence[str]) -> dict[str, str]:
    """What a job's overrides set `keys` to."""
    found = {_key(item): item.partition("=")[2] for item in job}
    return {key: found[key] for key in keys if key in found}


def job_name(values: Mapping[str, str], number: int) -> str:
    """A folder name of what a job varies: `safety.lambda_cls-0.1+safety.placement-append`; `job-3` when nothing is.

    Only what Hydra and shells read without quotes; what had to be changed for that is told apart by a digest.
    """
    plain = "+".join(f"{key}-{value}" for key, value in values.items())
    name = re.sub(r"[^\w.+-]+", "-", plain).strip("-")[:_LONGEST_NAME]
    if name == plain:
        return name or f"job-{number}"
    return f"{name}-{hashlib.sha256(plain.encode()).hexdigest()[:6]}"


@dataclass(frozen=True)
class JobRecord:
    """One job's `job.json`: what it varies, how far it came, and how often it was begun in this folder."""

    values: dict[str, str] = field(default_factory=dict)
    state: str = RUNNING
    error: str = ""
    attempts: int = 1

    @classmethod
    def read(cls, folder: Path) -> JobRecord | None:
        """The record in a folder; None where there is none that can be read."""
        try:
            return cls(**json.loads((folder / JOB_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    @classmethod
    def begin(cls, folder: Path, values: Mapping[str, str]) -> JobRecord:
        """Writes that a job runs, counting earlier attempts."""
        earlier = cls.read(folder)
        return cls(dict(values), attempts=1 + (earlier.attempts if earlier else 0)).write(folder)

    def end(self, folder: Path, error: str = "") -> JobRecord:
        """Writes that it finished, or failed with `error`."""
        return replace(self, state=FAILED if error else FINISHED, error=error).write(folder)

    def write(self, folder: Path) -> JobRecord:
        """Writes the record in one step."""
        write_text(folder / JOB_FILE, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")
        return self


def write_plan(root: Path, jobs: Mapping[str, Mapping[str, str]]) -> None:
    """Adds jobs to the folder's plan, so that one that never starts is known to be missing."""
    content = json.dumps({**read_plan(root), **jobs}, indent=2, ensure_ascii=False)
    write_text(root / PLAN_FILE, content + "\n")


def read_plan(root: Path) -> dict[str, dict[str, str]]:
    """Name → swept values of every job that was ever planned in a folder; empty without a plan."""
    try:
        found = json.loads((root / PLAN_FILE).read_text(encoding="utf-8"))
        return {str(name): dict(values) for name, values in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def launcher_problems(overrides: Sequence[str]) -> list[str]:
    """A line on every launcher that is asked for and not installed."""
    names = [item.partition("=")[2] for item in overrides if item.startswith("hydra/launcher=")]
    return [
        f"hydra/launcher={name}: is not installed; pip install -e '.[sweep]' from a clone brings it"
        for name in names
        if name in LAUNCHERS and not _is_installed(LAUNCHERS[name])
    ]


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even its parent
        return False


def _is_listed(parsed: Override) -> bool:
    return parsed.is_discrete_sweep() and not isinstance(parsed.value(), Glob)


def _key(item: str) -> str:
    return item.partition("=")[0].lstrip("+")
