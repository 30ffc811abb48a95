"""`python -m safealign.serve`: what it says when it cannot start, and that Ctrl-C ends it well."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import CALM, build

from safealign.commands import USER_ERROR, run_command
from safealign.config import compose
from safealign.modeling.exporting import export_model
from safealign.serve import main, warnings
from safealign.serving.keys import is_loopback, key_of
from safealign.serving.service import served_name


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a tiny model."""
    model = build(CALM)
    folder = tmp_path_factory.mktemp("runs") / "mine" / "export"
    assert model.card is not None
    export_model(folder, model.hf, model.tokenizer, model.parts, model.card, merge=True, base_name="tiny_random")
    return folder


def run(*overrides: str) -> int:
    return run_command(main, "serve", argv=overrides, record=False)


def test_a_taken_port_is_said_before_the_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run("model=nowhere", f"port={taken.getsockname()[1]}") == USER_ERROR
    assert "choose another" in capsys.readouterr().err


def test_a_missing_key_or_model_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMPTY_KEY", " ")
    assert run("model=nowhere", "api_key_env=EMPTY_KEY") == USER_ERROR
    assert "EMPTY_KEY" in capsys.readouterr().err
    assert run("model=nowhere", "port=0", "offline=true") == USER_ERROR
    monkeypatch.setenv("FULL_KEY", " abc\n")
    assert (key_of("FULL_KEY"), key_of(None)) == ("abc", None)


def test_what_cannot_be_decoded_with_is_said_at_the_start(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"model={export}", "port=0", "decoding.schedule=every", "decoding.min_new_tokens=999") == USER_ERROR
    assert "min_new_tokens 999" in capsys.readouterr().err


def test_the_served_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert served_name("outputs/x/export") == "x" == served_name("outputs/x/export/")
    assert (served_name("org/model"), served_name("/somewhere/model")) == ("model", "model")
    (tmp_path / "x" / "export").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "x" / "export")
    assert served_name(".") == "x"


def test_an_open_or_bare_server_is_warned_of() -> None:
    config: Any = compose(["model=x", "host=0.0.0.0", "decoding.safety=false"], "serve")
    assert [line.split("=")[0] for line in warnings(config, is_open=True)] == ["host", "decoding.safety"]
    assert warnings(compose(["model=x"], "serve"), is_open=False) == []
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "example.org")] == [
        *(True, True, True),
        *(False, False),
    ]


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_live_answers_and_exits_with_0(export: Path, root: Path, number: signal.Signals) -> None:
    overrides = [f"model={export}", "port=0", "max_new_tokens=1900", "decoding.max_new_tokens=1900"]
    command = [sys.executable, "-m", "safealign.serve", *overrides, "decoding.min_new_tokens=1900"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        seen = ""
        while not (found := re.search(r"serving mine on (http://\S+)/v1", seen)):
            line = process.stdout.readline()
            assert line, seen
            seen += line
        transport = httpx.HTTPTransport(retries=5)  # the line is printed just before the port listens
        body = {"messages": [{"role": "user", "content": "Hello"}], "stream": True}
        with (
            httpx.Client(transport=transport, timeout=60) as client,
            client.stream("POST", f"{found[1]}/v1/chat/completions", json=body) as response,
        ):
            lines = response.iter_lines()
            next(lines)
            process.send_signal(number)
            events = [line for line in lines if line]
        assert json.loads(events[-2][6:])["error"]["code"] == "shutting_down"
        rest = process.stdout.read()
        assert process.wait(20) == 0 and "stopped" in rest and "Traceback" not in rest, rest
