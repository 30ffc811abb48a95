"""The prompts an evaluation is run on; training never sees them (the leak check looks at the same names)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from safealign.data.parts import interleave, take_part
from safealign.data.readers import READERS
from safealign.data.records import BENIGN, MALICIOUS, Record
from safealign.data.sources import load_records
from safealign.errors import ConfigError

Load = Callable[[bool], list[Record]]


@dataclass(frozen=True)
class EvaluationSet:
    """A named set of prompts with one purpose; `sources` are (source, part) pairs.

    `max_characters`: prompts whose turns are longer in all are left out (they carry whole documents).
    """

    name: str
    purpose: str
    label: str | None
    sources: tuple[tuple[str, str], ...]
    max_characters: int | None = None


SETS = {
    item.name: item
    for item in (
        EvaluationSet("harmful", "attack success", MALICIOUS, (("harmbench_test", "all"),)),
        EvaluationSet("benign", "false refusals and usefulness", BENIGN, (("alpaca", "test"),)),
        EvaluationSet(
            "over_refusal", "false refusals on prompts that sound harmful", BENIGN, (("overrefusal", "test"),)
        ),
        EvaluationSet("pairs", "contrast pairs", None, (("matched_pairs", "test"), ("rho_refusal_pairs", "test"))),
        EvaluationSet(
            "everyday",
            "false alarms on sources never trained on",
            BENIGN,
            (("gsm8k", "all"), ("writingbench_short_english", "all"), ("kto", "all")),
            max_characters=600,
        ),
    )
}


def load_set(name: str, n: int | None = None, offline: bool = False) -> list[Record]:
    """The first n records of an evaluation set (evenly from each of its sources), or of any named source or file.

    Raises ConfigError for an unknown name.
    """
    if name in SETS:
        item = SETS[name]
        parts = [take_part(load_records(s, label=item.label, offline=offline), part, s) for s, part in item.sources]
        return [record for record in interleave(parts) if _fits(record, item.max_characters)][:n]
    if name in READERS or "/" in name or name.endswith((".jsonl", ".parquet")):
        return load_records(name, offline=offline)[:n]
    raise ConfigError(f"unknown evaluation set {name!r}: known are {', '.join(SETS)}, any data source, or a file")


def _fits(record: Record, limit: int | None) -> bool:
    return limit is None or record.prompt_characters <= limit
