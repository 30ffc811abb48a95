"""The guard that `data.sampling.guard` names, given what the sources say about requests and answers."""

from __future__ import annotations

from collections.abc import Sequence

from safealign.config.roots import TrainConfig
from safealign.data.records import BENIGN, MALICIOUS, Record
from safealign.judges.encoder import SentenceEncoder
from safealign.judges.guards import ProbeGuard, RuleGuard, fingerprint
from safealign.judges.protocol import Guard
from safealign.sampling import Labeller

NO_GUARD, RULES = "none", "rules"


def labeller(config: TrainConfig, records: Sequence[Record]) -> Labeller | None:
    """Who must agree with the labels of sampled answers; None for `guard=none`. It is made when it is first asked."""
    name, threshold = config.data.sampling.guard, config.data.sampling.guard_threshold
    if name == NO_GUARD:
        return None
    if name == RULES:
        malicious = sorted({record.request for record in records if record.label == MALICIOUS})
        return Labeller(f"{name}-{fingerprint(malicious)}", lambda: RuleGuard(malicious), threshold)
    requests, answers = _labelled(records)
    name = f"{name}-{fingerprint(requests, answers)}"
    return Labeller(name, lambda: probe_guard(records, config.offline), threshold)


def probe_guard(records: Sequence[Record], offline: bool) -> Guard:
    """A guard by sentence embeddings, fitted on the records' requests and answers."""
    return ProbeGuard(SentenceEncoder(offline=offline).encode, *_labelled(records))


def _labelled(records: Sequence[Record]) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Requests and answers with whether they are harmful."""
    requests = [(r.request, r.label == MALICIOUS) for r in records if r.label]
    answers = [(r.response, _harmful(r)) for r in records if r.response and (r.response_label or r.label == BENIGN)]
    return requests, answers


def _harmful(record: Record) -> bool:
    return record.response_label == MALICIOUS
