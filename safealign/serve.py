"""`python -m safealign.serve model=outputs/x/export`: OpenAI's chat protocol over HTTP, streaming or not."""

from __future__ import annotations

import sys

import torch
from rich.console import Console
from rich.text import Text

from safealign.commands import run_command
from safealign.config.roots import ServeConfig
from safealign.errors import ConfigError

EXTRA = {"fastapi", "starlette", "pydantic", "uvicorn", "prometheus_client"}


def main(config: ServeConfig) -> None:
    """Loads the export and serves it until Ctrl-C."""
    try:
        from safealign.serving import app, keys, running, service
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:
            raise
        raise ConfigError(f"serving needs {error.name}: pip install 'safealign[serve]'") from error
    from safealign.model import load

    console = Console(highlight=False, soft_wrap=True)
    key = keys.key_of(config.api_key_env)
    bound = running.bind(config.host, config.port)
    if config.threads:
        torch.set_num_threads(config.threads)
    console.print(f"loading {config.model.path}")
    model = load(config.model.path, dtype=config.model.dtype, attn=config.model.attn, offline=config.offline)
    served = service.Service(model, config)
    host, port = bound.getsockname()[:2]
    where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    console.print(f"serving {served.name} on {where}/v1 · {where}/health · {where}/metrics · Ctrl-C stops")
    for warning in warnings(config, is_open=key is None and not keys.is_loopback(config.host)):
        console.print(Text(warning, style="yellow"))
    running.run(app.create_app(served, key), bound, served.worker.stop)
    console.print("stopped")


def warnings(config: ServeConfig, *, is_open: bool) -> list[str]:
    """What whoever starts the server should know; `is_open`: others reach it without a key."""
    found = []
    if is_open:
        found.append(f"host={config.host} can be reached from other machines without a key: set api_key_env=NAME")
    if not config.decoding.safety:
        found.append("decoding.safety=false: this is the bare model, no request is judged")
    return found


if __name__ == "__main__":
    sys.exit(run_command(main, "serve", record=False))
