"""One log of a job, in its run directory: what rank 0 prints, and the warnings and errors of every rank."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from safealign.errors import ConfigError, SafealignError
from safealign.ranks.world import World

LOG_FILE = "log.txt"
_LOGGER = logging.getLogger("safealign.job")


class JobConsole(Console):
    """A console whose lines also go into the log; silent on every rank but the first."""

    def __init__(self, first: bool = True, **options: Any) -> None:
        super().__init__(quiet=not first, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints, and logs what is text (not bars, tables and pictures)."""
        super().print(*objects, **options)
        if not self.quiet and objects and all(isinstance(item, str) for item in objects):
            plain = options.get("markup") is False
            texts = [item if plain else Text.from_markup(item).plain for item in objects]
            _LOGGER.info(" ".join(texts).strip("\n"))


@contextmanager
def job_log(run_dir: Path, world: World) -> Iterator[None]:
    """While open, `run_dir/log.txt` gets this rank's lines, appended whole; what ends the job is the last of them.

    Raises ConfigError when the file cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(run_dir / LOG_FILE, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"run_dir={run_dir}: cannot be written ({error.strerror}); choose another") from error
    handler.setFormatter(logging.Formatter(f"%(asctime)s rank {world.rank} %(levelname)s %(message)s"))
    root, level, propagates = logging.getLogger(), _LOGGER.level, _LOGGER.propagate
    libraries = _Warnings(handler)
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = False
    _LOGGER.addHandler(handler)
    root.addHandler(libraries)
    try:
        _LOGGER.info("%s: %s", world.name, " ".join(sys.argv))
        yield
    except SafealignError as error:
        _LOGGER.error(str(error))
        raise
    except BaseException:
        _LOGGER.exception("stopped")
        raise
    finally:
        root.removeHandler(libraries)
        _LOGGER.removeHandler(handler)
        _LOGGER.setLevel(level)
        _LOGGER.propagate = propagates
        handler.close()


class _Warnings(logging.Handler):
    """Passes warnings and worse of any library on."""

    def __init__(self, target: logging.Handler) -> None:
        super().__init__(logging.WARNING)
        self.target = target

    def emit(self, record: logging.LogRecord) -> None:
        self.target.handle(record)
