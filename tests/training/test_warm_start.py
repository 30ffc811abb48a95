"""The warm start: standardisation and a logistic regression on the frozen model's own features."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from safealign.data.records import BENIGN, MALICIOUS
from safealign.errors import DataError
from safealign.judges.prototype import LatentPrototypes
from safealign.layout import RowKind
from safealign.modeling.feature_cache import FeatureCache
from safealign.modeling.features import layout_logits
from safealign.modeling.hidden import HiddenExtractor
from safealign.training.warm_start import PROTOTYPE, refit_windows, warm_start


@pytest.fixture
def examples(kit) -> list:
    bad = "Step one, then step two, and then three."
    records = [kit.record(f"the sea {i}", "It is wide and blue and cold.", BENIGN) for i in range(8)]
    records += [kit.record(f"ZZZ deed {i}", "Sorry, no, not that.", MALICIOUS) for i in range(8)]
    records += [kit.record(f"ZZZ how {i}", bad, MALICIOUS, MALICIOUS) for i in range(4)]
    return kit.examples(records, recovery_share=0.0)


def test_it_standardises_over_request_and_window_rows_and_no_others(kit, examples) -> None:
    _, parts = kit.safe_model()
    found = warm_start(parts, examples, examples)
    assert set(found.kinds.tolist()) == {RowKind.REQUEST, RowKind.WINDOW}
    assert (found.kinds == RowKind.REQUEST).sum() == len(examples)
    torch.testing.assert_close(parts.head.mean[0], found.features.mean(dim=0))
    torch.testing.assert_close(parts.head.scale[0], found.features.std(dim=0, unbiased=False))


def test_it_starts_the_head_at_the_regressions_solution(kit, examples) -> None:
    _, parts = kit.safe_model()
    found = warm_start(parts, examples, examples, penalty=0.01)
    logits = parts.head(found.features)
    requests = found.kinds == RowKind.REQUEST
    assert ((logits > 0) == (found.labels > 0.5))[requests].all()


@pytest.mark.parametrize("separate", [False, True])
def test_prototypes_are_loaded_as_a_head_that_standardises(kit, examples, separate) -> None:
    """Fitted on the states as they are, each read-out on its own rows; what the head says is what they say."""
    _, parts = kit.safe_model(separate_windows=separate)
    found = warm_start(parts, examples, examples, kind=PROTOTYPE)
    for readout, kind in ((0, RowKind.REQUEST), (1, RowKind.WINDOW)) if separate else ((0, None),):
        rows = found if kind is None else found.of(found.kinds == kind)
        wanted = LatentPrototypes().fit(rows.features, rows.labels).decision(rows.features)
        logits = parts.head(rows.features, torch.full_like(rows.kinds, readout))
        torch.testing.assert_close(logits.double(), wanted, rtol=1e-3, atol=1e-2)


def test_cached_states_give_the_same_head_and_are_not_read_again(kit, examples, tmp_path, monkeypatch) -> None:
    cache = FeatureCache(tmp_path)
    weights = []
    for _ in range(2):
        _, parts = kit.safe_model()
        warm_start(parts, examples, examples, cache=cache)
        weights.append(parts.head.linear.weight.detach().clone())
        monkeypatch.setattr(HiddenExtractor, "_batch", lambda self, texts: pytest.fail("a known text was read again"))
    assert torch.equal(*weights)


def test_the_frozen_features_are_those_that_training_will_see(kit, examples) -> None:
    """Reading prompts alone and gates closed is only a saving: live verdicts of row 0 are the same."""
    _, parts = kit.safe_model()
    found = warm_start(parts, examples, examples)
    live = layout_logits(parts, [e.input_ids for e in examples], [e.layout for e in examples])
    expected = torch.stack([logits[0] for logits in live])
    at = found.kinds == RowKind.REQUEST
    torch.testing.assert_close(parts.head(found.features[at]), expected, atol=1e-3, rtol=1e-4)


def test_without_a_fit_only_the_standardisation_is_fixed(kit, examples) -> None:
    _, parts = kit.safe_model()
    before = parts.head.linear.weight.detach().clone()
    warm_start(parts, examples, examples, fit=False)
    assert torch.equal(parts.head.linear.weight, before)
    assert parts.head.mean.any()


def test_the_language_model_and_the_token_stay_frozen(kit, examples) -> None:
    lm, parts = kit.safe_model()
    before = {name: value.clone() for name, value in lm.state_dict().items()}
    warm_start(parts, examples, examples)
    changed = {name for name, value in lm.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"safety_head.{name}" for name in ("mean", "scale", "linear.weight", "linear.bias")}


def test_separate_read_outs_start_each_on_their_own_rows(kit, examples) -> None:
    _, parts = kit.safe_model(separate_windows=True)
    found = warm_start(parts, examples, examples, penalty=0.01)
    for readout, kind in ((0, RowKind.REQUEST), (1, RowKind.WINDOW)):
        rows = found.of(found.kinds == kind)
        torch.testing.assert_close(parts.head.mean[readout], rows.features.mean(dim=0))
        logits = parts.head(rows.features, parts.readouts(rows.kinds))
        assert ((logits > 0) == (rows.labels > 0.5)).double().mean() > 0.9
    assert not torch.equal(parts.head.linear.weight[0], parts.head.linear.weight[1])


def test_windows_of_one_label_leave_their_read_out_as_it_is(kit, examples) -> None:
    _, parts = kit.safe_model(separate_windows=True)
    benign = [e for e in examples if not any(r.label == 1.0 for r in e.layout.safety if r.kind is RowKind.WINDOW)]
    before = parts.head.linear.weight.detach().clone()
    warm_start(parts, examples, benign)
    assert not torch.equal(parts.head.linear.weight[0], before[0])
    assert torch.equal(parts.head.linear.weight[1], before[1])


def test_the_penalty_counts_texts_and_not_their_windows(kit, examples) -> None:
    _, parts = kit.safe_model()
    found = warm_start(parts, examples, examples)
    assert len(found.texts.unique()) <= 2 * len(examples) < len(found.texts)


def test_unlabelled_rows_are_left_out(kit, examples) -> None:
    _, parts = kit.safe_model()
    rows = [replace(row, label=None) for row in examples[0].layout.safety]
    blank = replace(examples[0], layout=replace(examples[0].layout, safety=tuple(rows)))
    found = warm_start(parts, [blank, *examples[1:]], examples)
    assert (found.kinds == RowKind.REQUEST).sum() == len(examples) - 1


def test_one_label_alone_is_refused_with_a_reason(kit) -> None:
    _, parts = kit.safe_model()
    with pytest.raises(DataError, match="both classes"):
        benign = kit.examples([kit.record(f"the sea {i}", "Wide.") for i in range(4)])
        warm_start(parts, benign, benign)


def test_the_last_fit_changes_the_windows_read_out_alone(kit, examples) -> None:
    """On the model as it is then, under the standardisation that the head already has."""
    lm, parts = kit.safe_model(separate_windows=True)
    warm_start(parts, examples, examples, penalty=10.0)
    before = {name: value.clone() for name, value in lm.state_dict().items()}
    assert refit_windows(parts, examples, penalty=0.01)
    changed = {name for name, value in lm.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"safety_head.linear.weight", "safety_head.linear.bias"}
    weight = lm.state_dict()["safety_head.linear.weight"]
    assert torch.equal(weight[0], before["safety_head.linear.weight"][0])
    found = warm_start(kit.safe_model(separate_windows=True)[1], examples, examples, penalty=0.01)
    windows = found.of(found.kinds == RowKind.WINDOW)
    logits = parts.head(windows.features, parts.readouts(windows.kinds))
    assert ((logits > 0) == (windows.labels > 0.5)).double().mean() > 0.9


@pytest.mark.parametrize("separate", [True, False])
def test_the_last_fit_leaves_alone_what_it_cannot_fit(kit, examples, separate) -> None:
    """A shared read-out would lose the request's verdict; windows of one label tell nothing."""
    lm, parts = kit.safe_model(separate_windows=separate)
    before = {name: value.clone() for name, value in lm.state_dict().items()}
    benign = [e for e in examples if all(row.label == 0 for row in e.layout.safety if row.kind is RowKind.WINDOW)]
    assert not refit_windows(parts, benign if separate else examples)
    assert not refit_windows(parts, [])
    assert all(torch.equal(value, before[name]) for name, value in lm.state_dict().items())


def test_a_refit_gives_no_weight_to_what_windows_do_not_read(kit, examples) -> None:
    _, parts = kit.safe_model(separate_windows=True, window_pool=("mean",))
    warm_start(parts, examples, examples)
    assert refit_windows(parts, examples)
    reads = parts.head.reads[1]
    assert parts.head.linear.weight[1][reads].any() and not parts.head.linear.weight[1][~reads].any()
    assert parts.head.linear.weight[0].all()
