"""Rows per second and peak memory of checking a large JSONL file.

`python -m benchmarks.validation rows=1000000 [processes=2] [out=FOLDER]` writes a file of invented harmless rows, of
the shape that `data=jsonl` takes, checks it in processes of its own, and prints one line of JSON; memory is that of all
of them together (Linux).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

_WORDS = ("fold", "paper", "bird", "sheet", "press", "corner", "wing", "table", "garden", "letter", "bread", "river")
_CHECK = """
import json, resource, sys, time
from safealign.data.scanning import scan
from safealign.judges.refusal import RefusalMatcher
processes = int(sys.argv[2])
found = scan(sys.argv[1], refused=RefusalMatcher().refused, processes=processes)
own, helpers = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
used = own.ru_utime + own.ru_stime + helpers.ru_utime + helpers.ru_stime
peak = own.ru_maxrss + (processes * helpers.ru_maxrss if processes > 1 else 0)  # of the largest helper, for each
print(json.dumps({"rows": found.rows, "processes": processes, "cpu_seconds": round(used, 2),
                  "rows_per_cpu_second": round(found.rows / used),
                  "faults": found.n_problems, "seconds": round(found.seconds, 2),
                  "rows_per_second": round(found.rate), "peak_mb": round(peak * 1024 / 1e6)}))
"""


def write_rows(path: Path, rows: int) -> None:
    """Conversations of two or four turns, a third of them labelled malicious (with an invented, empty threat)."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            words = [_WORDS[(i * k) % len(_WORDS)] for k in range(1, 25)]
            turns = [{"role": "user", "content": f"Please tell me about the {' '.join(words[:8])} of number {i}"}]
            turns.append({"role": "assistant", "content": f"Take {' '.join(words)} and go on with number {i}. Done."})
            bad = i % 3 == 0
            label = "malicious" if bad else "benign"
            row = {"messages": turns * (1 + i % 2), "label": label, "response_label": label, "id": f"row-{i}"}
            file.write(json.dumps(row) + "\n")


def main(arguments: list[str]) -> None:
    """Writes, checks, prints."""
    options = dict(argument.split("=", 1) for argument in arguments)
    with tempfile.TemporaryDirectory(dir=options.get("out")) as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(path, int(options.get("rows", "1000000")))
        size = path.stat().st_size / 1e6
        command = [sys.executable, "-c", _CHECK, str(path), options.get("processes", "2")]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    print(json.dumps({"file_mb": round(size), **json.loads(done.stdout)}))


if __name__ == "__main__":
    main(sys.argv[1:])
