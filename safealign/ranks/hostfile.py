"""DeepSpeed's hostfile: one `name slots=N` a line, checked before a launcher meets it.

`python -m safealign.ranks.hostfile FILE [NODE_RANK]` prints the first host, where rank 0 runs, or one clear sentence.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from safealign.errors import RankError

_LINE = re.compile(r"(\S+)\s+slots=(\d+)")


def read_hostfile(path: Path) -> dict[str, int]:
    """Hosts in order, with the number of processes (GPUs) of each. Raises RankError that names the bad line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RankError(f"the hostfile {path} cannot be read ({error}): write one `name slots=GPUS` a line") from error
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        text = line.split("#", 1)[0].strip()
        if not text:
            continue
        found = _LINE.fullmatch(text)
        if found is None or int(found[2]) < 1:
            raise RankError(f"{path}:{number}: {text!r} is no host: write `name slots=GPUS`, as `node1 slots=8`")
        if found[1] in hosts:
            raise RankError(f"{path}:{number}: {found[1]} is named twice: give each host one line with all its slots")
        hosts[found[1]] = int(found[2])
    if not hosts:
        raise RankError(f"the hostfile {path} names no host: write one `name slots=GPUS` a line")
    return hosts


def main(arguments: list[str]) -> int:
    """Prints the first host; 2 and a sentence when the file, or the node's number, cannot be right."""
    try:
        if not 1 <= len(arguments) <= 2:
            raise RankError("give the hostfile, and this node's number where it is started without ssh")
        hosts = read_hostfile(Path(arguments[0]))
        if len(arguments) == 2 and not (arguments[1].isdigit() and int(arguments[1]) < len(hosts)):
            raise RankError(
                f"node_rank {arguments[1]}: {arguments[0]} names {len(hosts)} host(s), whose numbers go from 0 to "
                f"{len(hosts) - 1} in its order"
            )
    except RankError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(next(iter(hosts)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
