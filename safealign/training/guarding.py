"""An independent guard over sampled everyday requests, so that none of them teaches or calibrates harm as benign."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from safealign.data.records import BENIGN, MALICIOUS, Record
from safealign.judges.embedding import EmbeddingGuard

# Odds of nine to one: rejecting ordinary requests would flatter the thresholds, because calibration must see them.
_SUSPICIOUS = 2.2


def guarded(
    sampled: Sequence[Record],
    sources: Sequence[Record],
    encode: Callable[[list[str]], torch.Tensor] | None,
    say: Callable[[str], None],
) -> list[Record]:
    """The sampled records that a logistic regression on sentence embeddings of `sources` finds harmless.

    Without an encoder or without both labels among the sources nothing is left out.
    """
    known = [record for record in sources if record.label in (BENIGN, MALICIOUS)]
    if encode is None or not sampled or len({record.label for record in known}) < 2:
        return list(sampled)
    guard = EmbeddingGuard(encode, [record.request for record in known], [r.label == MALICIOUS for r in known])
    suspicious = (guard.decision([record.request for record in sampled]) > _SUSPICIOUS).tolist()
    say(f"  {sum(suspicious)} of them left out: an independent guard does not find them harmless")
    return [record for record, bad in zip(sampled, suspicious, strict=True) if not bad]
