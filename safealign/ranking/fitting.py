"""Fits a ranker on cached states: AdamW with a cosine rate, stopped early by its picks on requests of their own."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from safealign.errors import DataError
from safealign.objectives.listwise import listwise_kl, pointwise_bce
from safealign.ranking.lists import Batch, StateList, collate, drawn
from safealign.ranking.network import Ranker
from safealign.ranking.picking import by_label, picks
from safealign.ranking.settings import LISTWISE, MOST_PARAMETERS, FitSettings, RankerSettings

Row = dict[str, float]


@dataclass
class Fitted:
    """The ranker of the best epoch, in evaluation mode, and a row of figures for each epoch."""

    ranker: Ranker
    epoch: int
    history: list[Row] = field(default_factory=list)


def fit_ranker(
    train: Sequence[StateList],
    stopping: Sequence[StateList],
    settings: RankerSettings,
    fit: FitSettings,
    seed: int = 0,
    log: Callable[[Row], None] | None = None,
) -> Fitted:
    """Trains on `train` and keeps the epoch whose picks on `stopping` are best (of equal ones, with the lower loss).

    Every epoch draws new lists of at most `fit.list_length` answers. The same seed gives the same ranker; the global
    random state is left alone. `log` gets each epoch's row. Raises DataError where nothing is left to learn from, or to
    stop by, or the training diverges.
    """
    usable, checked = [one for one in train if one.is_mixed], [one for one in stopping if one.is_mixed]
    if not usable or not checked:
        raise DataError(
            f"{len(usable)} lists to train on and {len(checked)} to stop by have both a good answer and another: "
            "sample more requests (ranker.candidates), or more answers to each"
        )
    width = usable[0].instruction.shape[-1]
    _check_size(settings, width)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ranker = Ranker(settings, width)
        ranker.standardise(torch.cat([torch.cat([one.instruction[None], one.answers]) for one in usable]))
        return _Training(ranker, usable, checked, fit, random.Random(f"ranker/{seed}")).run(log)


def _check_size(settings: RankerSettings, width: int) -> None:
    n = settings.parameters(width)
    if n >= MOST_PARAMETERS:
        raise DataError(
            f"a ranker of ranker.hidden={settings.hidden} on states of {width} values has {n:,} parameters, and "
            f"{MOST_PARAMETERS:,} is the method's bound: take a smaller ranker.hidden"
        )


def ranker_loss(ranker: Ranker, batch: Batch) -> torch.Tensor:
    """The loss of the ranker's kind on a batch of lists."""
    scores = ranker(batch.instruction, batch.answers, batch.mask)
    loss = listwise_kl if ranker.settings.kind == LISTWISE else pointwise_bce
    return loss(scores, batch.labels, batch.mask, ranker.settings.tau)


def score_with(ranker: Ranker) -> Callable[[StateList], list[float]]:
    """The ranker as a scorer of lists."""
    return lambda one: ranker.scores(torch.cat([one.instruction[None], one.answers]))


class _Training:
    """One fit under way."""

    def __init__(
        self,
        ranker: Ranker,
        train: Sequence[StateList],
        stopping: Sequence[StateList],
        fit: FitSettings,
        rng: random.Random,
    ) -> None:
        self.ranker, self.train, self.stopping, self.fit, self.rng = ranker, train, stopping, fit, rng
        self.optimiser = torch.optim.AdamW(
            ranker.parameters(), lr=fit.learning_rate, weight_decay=fit.weight_decay
        )
        batches = -(-len(train) * fit.draws // fit.batch_size)
        self.rate = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, max(1, fit.epochs * batches))

    def run(self, log: Callable[[Row], None] | None) -> Fitted:
        """All epochs, or as many as the picks get better."""
        found, best, kept = Fitted(self.ranker, 0), (-1.0, 0.0), _state(self.ranker)
        for epoch in range(1, self.fit.epochs + 1):
            row = {"epoch": float(epoch), "loss": self._epoch(), **self._figures()}
            found.history.append(row)
            if log is not None:
                log(row)
            reached = (row["stopping/accuracy"], -row["stopping/loss"])
            if reached > best:
                best, kept, found.epoch = reached, _state(self.ranker), epoch
            elif epoch - found.epoch >= self.fit.patience:
                break
        self.ranker.load_state_dict(kept)
        self.ranker.eval()
        return found

    def _epoch(self) -> float:
        self.ranker.train()
        lists = [drawn(one, self.fit.list_length, self.rng) for one in self.train for _ in range(self.fit.draws)]
        self.rng.shuffle(lists)
        total = 0.0
        for start in range(0, len(lists), self.fit.batch_size):
            some = lists[start : start + self.fit.batch_size]
            loss = ranker_loss(self.ranker, collate(some))
            if not bool(torch.isfinite(loss)):
                raise DataError("the ranker's loss is no number: lower ranker.fit.learning_rate or raise ranker.tau")
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.ranker.parameters(), self.fit.max_grad_norm)
            self.optimiser.step()
            self.rate.step()
            total += loss.item() * len(some)
        return total / len(lists)

    @torch.no_grad()
    def _figures(self) -> Row:
        self.ranker.eval()
        score, found = score_with(self.ranker), picks(score_with(self.ranker), self.stopping)
        row = {
            "stopping/loss": float(ranker_loss(self.ranker, collate(self.stopping))),
            "stopping/accuracy": found.accuracy,
            "stopping/random": found.random,
        }
        return row | {f"stopping/accuracy/{name}": p.accuracy for name, p in by_label(score, self.stopping).items()}


def _state(ranker: Ranker) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in ranker.state_dict().items()}
