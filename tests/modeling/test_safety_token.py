"""Where the head reads, and the head itself: standardised, linear, fp32 under any autocast."""

from __future__ import annotations

import pytest
import torch

from safealign.modeling.safety_token import HeadSettings, SafetyHead, SafetyToken


@pytest.mark.parametrize(
    ("layers", "n_layers", "expected"),
    [
        ((1.0,), 30, (30,)),
        ((0.5, 0.7, 0.9, 1.0), 30, (15, 21, 27, 30)),
        ((1.0, 0.5), 4, (2, 4)),
        ((0.01,), 4, (1,)),
        ((0.5, 0.51), 4, (2,)),
    ],
)
def test_a_fraction_is_the_block_at_that_depth(
    layers: tuple[float, ...], n_layers: int, expected: tuple[int, ...]
) -> None:
    assert HeadSettings(layers).blocks(n_layers) == expected


def test_the_width_counts_depths_and_pools() -> None:
    assert HeadSettings((0.5, 1.0), ("row", "mean", "last")).width(4, 32) == 2 * 3 * 32


@pytest.mark.parametrize("layers", [(), (0.0,), (-0.5,), (1.1,)])
def test_depths_outside_the_model_are_refused(layers: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="fractions of depth"):
        HeadSettings(layers)


@pytest.mark.parametrize("pool", [(), ("row", "max")])
def test_unknown_pools_are_refused(pool: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"head\.pool"):
        HeadSettings((1.0,), pool)


def _head(features: torch.Tensor) -> SafetyHead:
    head = SafetyHead(features.shape[-1])
    head.standardise_on(features)
    head.set_linear(torch.linspace(-1, 1, features.shape[-1]), 0.25)
    return head


def test_the_logit_is_linear_in_standardised_features() -> None:
    features = torch.randn(50, 6) * 100 + 7
    head = _head(features)
    standard = (features - features.mean(0)) / features.std(0, unbiased=False)
    torch.testing.assert_close(head(features), standard @ torch.linspace(-1, 1, 6) + 0.25)


def test_constant_inputs_keep_their_scale() -> None:
    head = SafetyHead(2)
    head.standardise_on(torch.tensor([[3.0, 1.0], [3.0, 2.0]]))
    assert head.scale[0, 0] == 1.0
    assert torch.isfinite(head(torch.tensor([[4.0, 1.5]]))).all()


def test_each_row_is_judged_by_its_own_read_out() -> None:
    first, second = torch.randn(20, 6), torch.randn(20, 6) * 3 - 1
    head = SafetyHead(6, 2)
    for readout, features in enumerate((first, second)):
        head.standardise_on(features, readout)
        head.set_linear(torch.randn(6), float(readout), readout)
    rows, chosen = torch.randn(4, 3, 6), torch.tensor([[0, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 1]])
    found = head(rows, chosen)
    for readout, features in enumerate((first, second)):
        standard = (rows - features.mean(0)) / features.std(0, unbiased=False)
        expected = standard @ head.linear.weight[readout] + head.linear.bias[readout]
        torch.testing.assert_close(found[chosen == readout], expected[chosen == readout])


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6)])
def test_leading_dimensions_are_kept(shape: tuple[int, ...]) -> None:
    assert _head(torch.randn(9, 6))(torch.randn(shape)).shape == shape[:-1]


def test_the_head_computes_in_fp32_under_autocast() -> None:
    features = torch.randn(50, 64)
    head = _head(features)
    expected = head(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head(features)
        from_half = head(features.bfloat16())
    assert found.dtype is from_half.dtype is torch.float32
    assert torch.equal(found, expected)


def test_the_token_is_one_vector_for_every_row() -> None:
    token = SafetyToken(4)
    with torch.no_grad():
        token.weight.copy_(torch.arange(4.0))
    rows = token(2, 3)
    assert rows.shape == (2, 3, 4)
    assert (rows == torch.arange(4.0)).all()
    rows.sum().backward()
    assert token.weight.grad is not None and token.weight.grad.tolist() == [6.0] * 4


def test_a_windows_readout_ignores_what_it_does_not_read() -> None:
    settings = HeadSettings((0.5, 1.0), ("row", "mean", "last"), True, window_pool=("mean",))
    reads = settings.window_reads(4, 3)
    assert reads.tolist() == [False] * 6 + [True] * 6 + [False] * 6
    head = SafetyHead(settings.width(4, 3), settings.n_readouts)
    head.reads[1] = reads
    torch.nn.init.normal_(head.linear.weight)
    features, other = torch.randn(2, 18), torch.randn(2, 18)
    mixed = torch.where(reads, features, other)
    request, window = torch.zeros(2, dtype=torch.long), torch.ones(2, dtype=torch.long)
    assert torch.equal(head(features, window), head(mixed, window))
    assert not torch.equal(head(features, request), head(mixed, request))


@pytest.mark.parametrize(
    "settings", [{"pool": ("row",), "separate_windows": True}, {"pool": ("mean",), "separate_windows": False}]
)
def test_windows_read_a_part_of_the_pool_with_weights_of_their_own(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="window_pool"):
        HeadSettings((1.0,), window_pool=("mean",), **settings)  # type: ignore[arg-type]
