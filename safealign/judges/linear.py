"""Logistic regression with an L2 penalty: baselines on embeddings, and the warm start of the safety head."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import binary_cross_entropy_with_logits

from safealign.errors import CheckpointError, DataError

KEYS = ("weight", "bias", "mean", "scale")
# L2 penalty per independent text, for regressions on a few thousand rows of standardised states or embeddings: less
# lets the loudest inputs of the training sources decide, much more forgets what only some texts show.
PENALTY_PER_TEXT = 0.5
# Steps of L-BFGS for such regressions: logits to three digits; the last bits take three times as long.
ITERATIONS = 100


class LogisticProbe:
    """p = sigmoid(w · (x - mean) / scale + b), fitted in fp64.

    Minimises  Σ_i c_i · BCE(p_i, y_i) + l2/2 · ‖w‖²  with row weights c_i (1 by default) and a free intercept
    b; so `l2` is 1/C of scikit-learn's `LogisticRegression` on standardised inputs.

    Attributes:
        weight: w, fp64 [D].
        bias: b, fp64 scalar.
        mean, scale: the standardisation, fp64 [D]; taken from the rows of `fit` unless given.
    """

    def __init__(self, mean: torch.Tensor | None = None, scale: torch.Tensor | None = None) -> None:
        """`mean` and `scale` [D] fix the standardisation beforehand (for a head that has its own)."""
        self.mean = mean.detach().double().cpu() if mean is not None else torch.empty(0, dtype=torch.float64)
        self.scale = (
            scale.detach().double().cpu() if scale is not None else torch.empty(0, dtype=torch.float64)
        )
        self.weight = torch.empty(0, dtype=torch.float64)
        self.bias = torch.zeros((), dtype=torch.float64)

    def fit(
        self,
        X: torch.Tensor,
        y: torch.Tensor,
        weight: torch.Tensor | None = None,
        l2: float = 1.0,
        max_iter: int = 500,
    ) -> LogisticProbe:
        """Fit on X [N, D] and y [N] (0 or 1, soft labels allowed); `weight` [N] counts rows more or less.

        Returns:
            itself.

        Raises:
            DataError: shapes that do not match, inputs that are not finite, or only one class.
        """
        rows, labels = X.detach().double().cpu(), torch.as_tensor(y).detach().double().cpu()
        counts = torch.ones_like(labels) if weight is None else weight.detach().double().cpu()
        check_rows("LogisticProbe", rows, labels, counts)
        if not self.mean.numel():
            self.mean = (counts[:, None] * rows).sum(0) / counts.sum()
        if not self.scale.numel():
            spread = ((counts[:, None] * (rows - self.mean) ** 2).sum(0) / counts.sum()).sqrt()
            self.scale = torch.where(spread > 1e-12, spread, torch.ones_like(spread))
        standard = self._standardised(rows)
        del rows  # in fp64 a second copy of thousands of rows would show in the peak
        self.weight, self.bias = _minimise(standard, labels, counts, l2, max_iter)
        return self

    def decision(self, X: torch.Tensor) -> torch.Tensor:
        """Logits of X [N, D], fp64 [N] on the CPU; sigmoid makes them probabilities.

        Raises:
            DataError: not fitted, or rows of another width.
        """
        if not self.weight.numel():
            raise DataError("LogisticProbe: not fitted; call fit(X, y) or load(path) first")
        rows = X.detach().double().cpu()
        if rows.ndim != 2 or rows.shape[1] != self.weight.numel():
            raise DataError(
                f"LogisticProbe: fitted on {self.weight.numel()} columns, got {tuple(rows.shape)}"
            )
        return self._standardised(rows) @ self.weight + self.bias

    def state_dict(self) -> dict[str, torch.Tensor]:
        """`weight`, `bias`, `mean`, `scale`, all fp64."""
        return {name: getattr(self, name).clone() for name in KEYS}

    @classmethod
    def from_state_dict(cls, state: dict[str, torch.Tensor]) -> LogisticProbe:
        """The probe that `state_dict` came from.

        Raises:
            CheckpointError: a tensor is missing, empty, or of another width.
        """
        missing = [name for name in KEYS if name not in state or not state[name].numel()]
        if missing:
            raise CheckpointError(
                f"LogisticProbe: {', '.join(missing)} missing or empty; save the probe again"
            )
        if not state["weight"].shape == state["mean"].shape == state["scale"].shape:
            raise CheckpointError(
                "LogisticProbe: weight, mean and scale differ in width; save the probe again"
            )
        probe = cls(state["mean"], state["scale"])
        probe.weight, probe.bias = state["weight"].double(), state["bias"].double()
        return probe

    def save(self, path: str | Path) -> None:
        """Write the state as safetensors."""
        save_file(self.state_dict(), str(path))

    @classmethod
    def load(cls, path: str | Path) -> LogisticProbe:
        """Read what `save` wrote.

        Raises:
            CheckpointError: as `from_state_dict`, or the file is missing.
        """
        if not Path(path).is_file():
            raise CheckpointError(f"LogisticProbe: no file {path}")
        return cls.from_state_dict(load_file(str(path)))

    def _standardised(self, rows: torch.Tensor) -> torch.Tensor:
        return (rows - self.mean).div_(self.scale)


def grouped_folds(
    groups: list[str], folds: int = 5, seed: int = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(train, test) row indices of each fold; rows of one group (a matched pair, a source) never part.

    Raises:
        DataError: fewer groups than folds.
    """
    names = sorted(set(groups))
    if len(names) < folds:
        raise DataError(
            f"grouped_folds: {folds} folds need as many groups, got {len(names)}; use fewer folds"
        )
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    fold_of = {names[index]: place % folds for place, index in enumerate(order)}
    places = torch.tensor([fold_of[group] for group in groups])
    for fold in range(folds):
        yield (places != fold).nonzero().flatten(), (places == fold).nonzero().flatten()


def _minimise(
    rows: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor, l2: float, max_iter: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(w, b) at the minimum, by L-BFGS with a strong Wolfe line search from zero."""
    w = torch.zeros(rows.shape[1], dtype=torch.float64, requires_grad=True)
    b = torch.zeros((), dtype=torch.float64, requires_grad=True)
    total = counts.sum()
    solver = torch.optim.LBFGS(
        [w, b],
        max_iter=max_iter,
        history_size=20,
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        """The penalised loss and its gradient."""
        solver.zero_grad()
        data = binary_cross_entropy_with_logits(rows @ w + b, labels, weight=counts, reduction="sum")
        loss = (data + 0.5 * l2 * (w @ w)) / total  # dividing keeps the tolerances meaningful for any N
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    return w.detach(), b.detach()


def check_rows(who: str, rows: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor) -> None:
    """Raises DataError, in the name of `who`, for rows [N, D], labels and weights [N] that nothing can be fitted on."""
    if rows.ndim != 2 or labels.shape != rows.shape[:1] or counts.shape != labels.shape:
        raise DataError(
            f"{who}: X must be [N, D], y and weight [N]; got {tuple(rows.shape)}, "
            f"{tuple(labels.shape)}, {tuple(counts.shape)}"
        )
    if not torch.isfinite(rows).all():
        raise DataError(f"{who}: row {int((~torch.isfinite(rows)).any(1).nonzero()[0])} is not finite")
    used = labels[counts > 0]
    if not used.numel() or used.min() == used.max():
        raise DataError(f"{who}: both classes are needed; add rows of the missing one")
