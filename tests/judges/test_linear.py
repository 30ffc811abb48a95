"""The logistic probe against closed forms, scikit-learn, and its own optimality conditions."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from safealign.errors import CheckpointError, DataError
from safealign.judges.linear import LogisticProbe, grouped_folds


def blobs(n: int = 300, d: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    gen = torch.Generator().manual_seed(seed)
    y = (torch.rand(n, generator=gen) < 0.4).double()
    x = torch.randn(n, d, generator=gen) * torch.arange(1, d + 1) + 0.5 * y[:, None] + 3.0
    return x, y


def test_two_cells_have_a_closed_form() -> None:
    """One binary input without penalty: the logits are the cells' log odds."""
    x = torch.tensor([0.0] * 10 + [1.0] * 10)[:, None]
    y = torch.tensor([1.0] * 2 + [0.0] * 8 + [1.0] * 7 + [0.0] * 3)
    logits = LogisticProbe().fit(x, y, l2=0.0).decision(torch.tensor([[0.0], [1.0]]))
    assert logits.tolist() == pytest.approx([math.log(2 / 8), math.log(7 / 3)], abs=1e-6)


def test_constant_input_gives_the_base_rate() -> None:
    probe = LogisticProbe().fit(torch.full((10, 1), 7.0), torch.tensor([1.0] * 3 + [0.0] * 7))
    assert probe.decision(torch.full((1, 1), 7.0)).item() == pytest.approx(math.log(3 / 7), abs=1e-6)
    assert probe.weight.abs().max() < 1e-9


def test_gradient_vanishes_at_the_solution() -> None:
    x, y = blobs()
    probe = LogisticProbe().fit(x, y, l2=2.0)
    z = (x.double() - probe.mean) / probe.scale
    residual = torch.sigmoid(probe.decision(x)) - y
    assert (z.T @ residual + 2.0 * probe.weight).abs().max() < 1e-4
    assert residual.sum().abs() < 1e-4


@pytest.mark.parametrize("l2", [0.1, 1.0, 50.0])
def test_agrees_with_scikit_learn(l2: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = blobs()
    probe = LogisticProbe().fit(x, y, l2=l2)
    z = ((x.double() - probe.mean) / probe.scale).numpy()
    theirs = linear_model.LogisticRegression(C=1 / l2, tol=1e-10, max_iter=5000).fit(z, y.numpy())
    assert probe.weight.tolist() == pytest.approx(theirs.coef_[0].tolist(), abs=1e-4)
    assert probe.bias.item() == pytest.approx(theirs.intercept_[0], abs=1e-4)


def test_weight_two_equals_the_row_twice() -> None:
    x, y = blobs(60)
    twice = torch.ones(60)
    twice[:20] = 2.0
    weighted = LogisticProbe().fit(x, y, weight=twice)
    repeated = LogisticProbe().fit(torch.cat([x, x[:20]]), torch.cat([y, y[:20]]))
    assert torch.allclose(weighted.decision(x), repeated.decision(x), atol=1e-5)


def test_inputs_are_standardised() -> None:
    x, y = blobs()
    plain = LogisticProbe().fit(x, y).decision(x)
    assert torch.allclose(LogisticProbe().fit(x * 1e4 - 7.0, y).decision(x * 1e4 - 7.0), plain, atol=1e-4)


def test_given_standardisation_is_kept() -> None:
    x, y = blobs()
    probe = LogisticProbe(mean=torch.zeros(8), scale=torch.full((8,), 2.0)).fit(x, y)
    assert probe.mean.abs().max() == 0 and torch.allclose(
        x.double() / 2 @ probe.weight + probe.bias, probe.decision(x)
    )


def test_more_penalty_gives_smaller_weights() -> None:
    x, y = blobs()
    norms = [LogisticProbe().fit(x, y, l2=l2).weight.norm().item() for l2 in (0.1, 10.0, 1000.0)]
    assert norms == sorted(norms, reverse=True)


def test_more_columns_than_rows_converges() -> None:
    x, y = blobs(50, 400)
    assert ((LogisticProbe().fit(x, y).decision(x) > 0) == y.bool()).all()


def test_fit_works_under_no_grad() -> None:
    with torch.no_grad():
        assert LogisticProbe().fit(*blobs()).weight.norm() > 0


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    x, y = blobs()
    probe = LogisticProbe().fit(x, y)
    probe.save(tmp_path / "probe.safetensors")
    assert torch.equal(LogisticProbe.load(tmp_path / "probe.safetensors").decision(x), probe.decision(x))


def test_bad_input_is_named(tmp_path: Path) -> None:
    x, y = blobs(10)
    broken = x.clone()
    broken[4, 1] = float("nan")
    for rows, labels, says in [
        (x, y[:5], r"\[N, D\]"),
        (broken, y, "row 4"),
        (x, torch.ones(10), "both classes"),
    ]:
        with pytest.raises(DataError, match=says):
            LogisticProbe().fit(rows, labels)
    with pytest.raises(DataError, match="not fitted"):
        LogisticProbe().decision(x)
    with pytest.raises(DataError, match="8 columns"):
        LogisticProbe().fit(x, y).decision(x[:, :3])
    with pytest.raises(CheckpointError, match="weight"):
        LogisticProbe.from_state_dict({"bias": torch.zeros(())})
    with pytest.raises(CheckpointError, match="no file"):
        LogisticProbe.load(tmp_path / "absent")


def test_folds_keep_groups_together() -> None:
    groups = [f"pair-{i // 2}" for i in range(40)]
    seen: list[int] = []
    for train, test in grouped_folds(groups, 5):
        assert not {groups[i] for i in train.tolist()} & {groups[i] for i in test.tolist()}
        seen += test.tolist()
    assert sorted(seen) == list(range(40))
    with pytest.raises(DataError, match="fewer folds"):
        next(grouped_folds(["a", "a"], 2))
