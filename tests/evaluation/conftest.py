"""A tiny model with a random head, and mild prompts: what the tests of this folder measure."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from safealign.data.records import BENIGN, MALICIOUS, Message, Record
from safealign.model import SafeModel
from safealign.modeling.attach import attach
from safealign.modeling.checkpoint import SafetyCard
from safealign.modeling.safety_token import HeadSettings
from safealign.modeling.tiny import tiny_model, tiny_tokenizer

HEAD = HeadSettings((0.5, 1.0), ("row", "mean", "last"))


def defended(seed: int = 0, **decoding: object) -> SafeModel:
    lm = tiny_model(seed=seed, layers=2)
    parts = attach(lm, HEAD)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in (parts.token.weight, parts.head.linear.weight):
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    thresholds = {"query": 50.0, "window": 50.0, "prefix": 50.0}
    card = SafetyCard(HEAD, "append", False, "Sorry, no", "No.", dict(decoding), thresholds, {"temperature": 1.0})
    return SafeModel(lm, tiny_tokenizer(), parts, card)


def bare(seed: int = 0) -> SafeModel:
    return SafeModel(tiny_model(seed=seed, layers=2), tiny_tokenizer())


def prompts(n: int, label: str = BENIGN) -> list[Record]:
    deed = "misdeed" if label == MALICIOUS else "bird"
    return [Record((Message("user", f"Tell of the {deed} {i}"),), label, id=f"{label}-{i}") for i in range(n)]


def answered(n: int) -> list[Record]:
    turns = [(Message("user", f"Fold bird {i}"), Message("assistant", "Fold it " + "and on " * i)) for i in range(n)]
    return [Record(pair, BENIGN, BENIGN) for pair in turns]


@pytest.fixture(scope="session")
def ours() -> SafeModel:
    return defended()


@pytest.fixture(scope="session")
def undefended() -> SafeModel:
    return bare()


@pytest.fixture(scope="session")
def make() -> Callable[..., SafeModel]:
    return defended


@pytest.fixture(scope="session")
def kit() -> type:
    class Kit:
        """The functions above."""

        prompts = staticmethod(prompts)
        answered = staticmethod(answered)
        defended = staticmethod(defended)
        bare = staticmethod(bare)

    return Kit
