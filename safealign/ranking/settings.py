"""What a ranker reads and is, how it is fitted, and how its candidates are sampled: the keys of `conf/ranker`."""

from __future__ import annotations

from dataclasses import dataclass

from safealign.errors import ConfigError

LISTWISE, POINTWISE = "listwise", "pointwise"
KINDS, POOLS = (LISTWISE, POINTWISE), ("last", "mean")
MOST_PARAMETERS = 5_000_000  # the paper's bound


@dataclass(frozen=True)
class RankerSettings:
    """`layer`: fraction of depth whose states are read, at an answer's last token or as the `mean` over it (`pool`).

    `hidden`, `heads`, `dropout`: of the one encoder block; `tau`: scores are divided by it before the softmax.
    `kind`: `listwise` lets the answers of a list see each other, `pointwise` does not. Raises ConfigError.
    """

    layer: float = 0.6
    pool: str = "mean"
    kind: str = LISTWISE
    hidden: int = 256
    heads: int = 4
    dropout: float = 0.1
    tau: float = 0.2

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.pool not in POOLS:
            raise ConfigError(f"ranker: kind is one of {KINDS} and pool one of {POOLS}, got {self.kind}, {self.pool}")
        if self.hidden < 1 or self.heads < 1 or self.hidden % self.heads:
            raise ConfigError(f"ranker.hidden={self.hidden} must be a multiple of ranker.heads={self.heads}")
        if not 0 < self.layer <= 1 or not 0 <= self.dropout < 1 or self.tau <= 0:
            raise ConfigError("ranker: layer lies in (0, 1], dropout in [0, 1), and tau is above 0")

    def parameters(self, width: int) -> int:
        """How many are trained on states of `width`."""
        h = self.hidden
        attention = 4 * h * h + 4 * h + 2 * h if self.kind == LISTWISE else 0
        return (width + 1) * h + attention + 8 * h * h + 5 * h + 2 * h


@dataclass(frozen=True)
class FitSettings:
    """`list_length`: answers of a training list; `draws`: lists drawn of each request in an epoch; `batch_size` lists.

    Training ends after `patience` epochs without a better choice on the lists to stop by.
    """

    list_length: int = 8
    draws: int = 2
    batch_size: int = 64
    epochs: int = 40
    patience: int = 10
    learning_rate: float = 3e-4
    weight_decay: float = 1e-4
    max_grad_norm: float = 3.0


@dataclass(frozen=True)
class CandidateSettings:
    """Requests of each label (`malicious`, `benign`), and answers to each of them: `direct` ones, `wrapped` in a
    jailbreak, `prefilled` with `prefill_tokens` tokens of an affirmative opening, `declined` with a refusal's.
    """

    malicious: int = 300
    benign: int = 420
    direct: int = 6
    wrapped: int = 4
    prefilled: int = 3
    declined: int = 3
    prefill_tokens: int = 10
    max_new_tokens: int = 48
    temperature: float = 1.0
    top_p: float = 0.95
    batch_size: int = 64
    seed: int = 0

    @property
    def per_request(self) -> int:
        """Answers to each request, before repeats are taken out."""
        return self.direct + self.wrapped + self.prefilled + self.declined
