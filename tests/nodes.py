"""Two machines on one: network namespaces with host names of their own, joined by a cable (a veth pair).

Nothing has a name in the file system: namespaces and cable are gone when the last process in them is, and `close` kills
every process in them, whoever started it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Both ends of the cable have this name; addresses end in the node's number from 1.
CABLE, ADDRESSES = "cable", ("10.77.0.1", "10.77.0.2")
_HOLD = "echo here; exec cat"  # lives until its standard input is closed, at the latest when the tests end
_NAME = "import socket, sys; socket.sethostname(sys.argv[1])"


class NoNamespaces(Exception):
    """This machine does not let namespaces be made; the text says why."""


class Nodes:
    """Two nodes, numbered from 0. Raises NoNamespaces where they cannot be made."""

    def __init__(self) -> None:
        missing = [tool for tool in ("unshare", "nsenter", "ip") if shutil.which(tool) is None]
        if missing:
            raise NoNamespaces(f"no {missing[0]} here (util-linux and iproute2 have it)")
        self._holders: list[subprocess.Popen[str]] = []
        self._spaces: list[str] = []
        try:
            self._hold(["unshare", "--user", "--map-root-user", "--net", "--uts"])
            user = ["nsenter", "--target", str(self._holders[0].pid), "--user", "--preserve-credentials"]
            self._hold([*user, "unshare", "--net", "--uts"])
            self._join()
        except BaseException:
            self.close()
            raise

    def command(self, node: int, line: list[str]) -> list[str]:
        """What runs `line` on a node."""
        first, own = str(self._holders[0].pid), str(self._holders[node].pid)
        user = ["nsenter", "--target", first, "--user", "--preserve-credentials"]
        return [*user, "nsenter", "--target", own, "--net", "--uts", *line]

    def pull_the_cable(self) -> None:
        """From now on the nodes do not reach each other; nothing tells their programs."""
        self._run(1, ["ip", "link", "set", CABLE, "down"])

    def plug_the_cable_in(self) -> None:
        """They do again."""
        self._run(1, ["ip", "link", "set", CABLE, "up"])

    def processes(self, node: int) -> dict[int, dict[str, str]]:
        """Processes on a node with their environments, without the one that holds it."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if os.readlink(folder / "ns" / "net") == self._spaces[node]:
                    words = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                    found[int(folder.name)] = dict(word.split("=", 1) for word in words if "=" in word)
        found.pop(self._holders[node].pid, None)
        return found

    def close(self) -> None:
        """Ends everything that runs on the nodes, and with it the nodes."""
        self.clear()
        for holder in self._holders:
            holder.kill()
            holder.communicate()

    def clear(self) -> None:
        """Kills whatever runs on the nodes."""
        until = time.monotonic() + 10.0
        while time.monotonic() < until:
            running = [pid for node in range(len(self._spaces)) for pid in self.processes(node)]
            for pid in running:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not running:
                break
            time.sleep(0.05)

    def _hold(self, line: list[str]) -> None:
        pipe = subprocess.PIPE
        holder = subprocess.Popen([*line, "sh", "-c", _HOLD], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self._holders.append(holder)
        assert holder.stdout is not None and holder.stderr is not None
        if holder.stdout.readline() != "here\n":
            raise NoNamespaces(f"no network namespaces here ({holder.stderr.read().strip()})")
        self._spaces.append(os.readlink(f"/proc/{holder.pid}/ns/net"))

    def _join(self) -> None:
        other = str(self._holders[1].pid)
        self._run(0, ["ip", "link", "add", CABLE, "type", "veth", "peer", "name", CABLE, "netns", other])
        for node, address in enumerate(ADDRESSES):
            self._run(node, [sys.executable, "-c", _NAME, f"node{node + 1}"])
            self._run(node, ["ip", "address", "add", f"{address}/24", "dev", CABLE])
            for link in ("lo", CABLE):
                self._run(node, ["ip", "link", "set", link, "up"])

    def _run(self, node: int, line: list[str]) -> None:
        done = subprocess.run(self.command(node, line), capture_output=True, text=True, timeout=30, check=False)
        if done.returncode != 0:
            raise NoNamespaces(f"{' '.join(line[:3])} is not allowed here ({done.stderr.strip()})")


@contextmanager
def two_nodes() -> Iterator[Nodes]:
    """Two nodes, for as long as it is open."""
    nodes = Nodes()
    try:
        yield nodes
    finally:
        nodes.close()
