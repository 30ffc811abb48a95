"""Preference training with the safety objective: TRL's DPOTrainer extended through hooks.

L = L_dpo + λ·L_cls (+ μ·L_sft on chosen answers); L_dpo is TRL's (Rafailov et al., arXiv 2305.18290, and its
variants). The reference is the policy at the start, with the gate closed: TRL's own passes run through the same
modules with adapters off (or with its `ref` copy of an adapter that training resumes), and no safety row in sight.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from trl import DPOTrainer

from safealign.layout.collate import SafetyBatch
from safealign.modeling.attach import Capture, RowPlan, SafetyParts
from safealign.modeling.features import plan_for
from safealign.training.accelerators import EveryRankWrites, standing_in
from safealign.training.checkpoints.saving import CheckpointMixin
from safealign.training.collator import LENGTH_KEY
from safealign.training.health import HealthMixin
from safealign.training.order import OrderMixin
from safealign.training.pair_examples import REFERENCE_KEYS
from safealign.training.reference_cache import ReferenceCache, reference_digest
from safealign.training.safety_loss import SafetyLossMixin, SafetyObjective, compact_labels
from safealign.training.uneven import NOBODY

REFERENCE_ADAPTER = "ref"
_PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


class ArmedForward:
    """What TRL calls in place of the model: one forward under a layout's rows, scoring answers only.

    The language-model head gets the rows that predict a token of an answer; its per-token results are put back to
    `[2B, T-1]`, where TRL looks for them. `capture` holds the states for the safety head, `output` the result.
    """

    def __init__(self, model: Any, parts: SafetyParts, batch: SafetyBatch, text_only: bool = False) -> None:
        self.model, self.parts, self.batch, self.text_only = model, parts, batch, text_only
        self.capture: Capture | None = None
        self.output: Any = None

    def __call__(self, *, input_ids: torch.Tensor, labels: torch.Tensor, **kwargs: Any) -> Any:
        compact, targets = compact_labels(labels)
        plan = text_plan(self.batch, compact) if self.text_only else plan_for(self.batch, compact)
        with self.parts.armed(plan) as self.capture:
            output = self.model(input_ids=input_ids, shift_labels=targets, **kwargs)
        for name in _PER_TOKEN:
            if (values := getattr(output, name)) is not None:
                placed = values.new_zeros(compact[:, :-1].shape).masked_scatter(compact[:, :-1], values[0])
                setattr(output, name, placed)
        self.output = output
        return output


def text_plan(batch: SafetyBatch, compact: torch.Tensor) -> RowPlan:
    """The same texts with the gate closed and no safety row at all: causal attention."""
    n = compact.shape[1]
    return RowPlan(0, batch.mask[..., :n, :n], batch.position_ids[:, :n], compact, capture=False)


class SafetyDPOTrainer(SafetyLossMixin, HealthMixin, CheckpointMixin, OrderMixin, DPOTrainer):  # type: ignore[misc]
    """DPOTrainer on pairs with safety rows; needs `precompute_ref_log_probs=True` in its arguments.

    `sft_weight` is μ. `cache` keeps the reference's log-probabilities from one run to the next; None computes them.
    TRL's loss is averaged over the pairs of a step, however they come in micro-batches and over ranks.
    """

    sides = 2

    def __init__(
        self,
        *args: Any,
        parts: SafetyParts,
        objective: SafetyObjective,
        sft_weight: float = 0.0,
        cache: ReferenceCache | None = None,
        **kwargs: Any,
    ) -> None:
        self.parts, self.sft_weight, self.cache = parts, sft_weight, cache
        self.n_chosen_tokens: torch.Tensor | None = None
        self.n_pairs: torch.Tensor | None = None
        super().__init__(*args, **kwargs)
        self.set_safety(parts, objective)
        policy: Any = self.model
        if REFERENCE_ADAPTER in getattr(policy, "peft_config", {}):
            policy.set_adapter("default")  # TRL leaves its copies of the safety parts trainable

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, LENGTH_KEY]))  # batches of one length

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """Nothing: our pairs are token ids already."""
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """TRL's pass over the data, shared among the ranks, unless rank 0's cache holds its result."""
        key, known = self._known(dataset)
        if known is not None:
            for column, side in zip(REFERENCE_KEYS, ("chosen", "rejected"), strict=True):
                dataset = dataset.add_column(column, known[side].tolist())
            return dataset
        with standing_in(self, EveryRankWrites(self.accelerator)):
            dataset = super()._precompute_ref_logps(dataset, name, batch_size)
        if self.cache is not None and key is not None and self.accelerator.is_main_process:
            chosen, rejected = (torch.tensor(dataset[column][:]) for column in REFERENCE_KEYS)
            self.cache.write(key, {"chosen": chosen, "rejected": rejected})
        return dataset

    def _known(self, dataset: Dataset) -> tuple[str | None, dict[str, torch.Tensor] | None]:
        """The cache's key, and what is there: rank 0's, so that either all ranks compute or none does."""
        if self.cache is None:
            return None, None
        found: list[Any] = [None, None]
        if self.accelerator.is_main_process:
            found[0] = key = self._cache_key(self.cache, dataset)
            found[1] = None if key is None else self.cache.read(key, len(dataset))
        broadcast_object_list(found, from_process=0)
        return found[0], found[1]

    def _cache_key(self, cache: ReferenceCache, dataset: Dataset) -> str | None:
        adapters = getattr(self.model, "peft_config", {})
        weights = reference_digest(self.model, REFERENCE_ADAPTER if REFERENCE_ADAPTER in adapters else None)
        columns = {name: dataset[name][:] for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
        return None if weights is None else cache.key(weights, columns)

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """TRL's, without safety rows, and scoring answers only."""
        inputs = dict(inputs)
        batch = SafetyBatch.pop_from(inputs)
        inputs.pop("safety_example", None)
        if batch is not None:
            model = ArmedForward(model, self.parts, batch, text_only=True)
        return super().compute_ref_log_probs(model, inputs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Counts the pairs and the chosen answers' tokens of all micro-batches of a step."""
        batches, n_items = super().get_batch_samples(*args, **kwargs)
        numbers = [batch["safety_example"] for batch in batches]
        tokens = [_chosen_tokens(b["completion_mask"], e) for b, e in zip(batches, numbers, strict=True)]
        self.n_chosen_tokens = self._over_ranks(sum(tokens, start=torch.tensor(0)))
        self.n_pairs = self._over_ranks(torch.tensor(sum(self.n_examples(examples) for examples in numbers)))
        return batches, n_items

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss of the armed policy, plus λ·BCE of the safety rows and μ·NLL of the chosen answers."""
        batch = SafetyBatch.pop_from(inputs)
        if batch is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        examples = inputs.pop("safety_example")
        policy = ArmedForward(model, self.parts, batch)
        with self.counting(examples):
            # Past the mixin, whose own is for losses that see labels.
            loss = super(SafetyLossMixin, self).compute_loss(policy, inputs, *args, **kwargs)
        assert policy.capture is not None
        loss = self._shared(loss, examples)
        loss = loss + self._safety_loss(policy.capture, batch, examples)
        return loss + self._sft_loss(policy.output.log_probs, _chosen_tokens(inputs["completion_mask"], examples))

    def _shared(self, loss: torch.Tensor, examples: torch.Tensor) -> torch.Tensor:
        """TRL's mean over a micro-batch, weighed by its pairs: they add up to the mean over the pairs of the step."""
        if not self._training or self.n_pairs is None:
            self._note("dpo/loss", loss)
            return loss
        share = loss * (self.n_examples(examples) / self.n_pairs.to(loss.device))
        self._note("dpo/loss", share)
        return share * self._loss_divisor()

    def _sft_loss(self, log_probs: torch.Tensor, here: torch.Tensor) -> torch.Tensor | float:
        """μ times the mean negative log-likelihood of chosen tokens, over all micro-batches of the step.

        TRL's loss type `sft` is the mean of the micro-batches' means, which depends on how a batch is cut. `here`: how
        many tokens this one has.
        """
        if self.sft_weight == 0:
            return 0.0
        total = -log_probs[: len(log_probs) // 2].sum() * here.clamp(max=1)
        in_step = self.n_chosen_tokens if self._training else None
        count = here if in_step is None else in_step
        share = total / torch.where(count > 0, count, 1).to(total.device)
        self._note("dpo/sft_loss", share)
        return self.sft_weight * share * (1 if in_step is None else self._loss_divisor())


def _chosen_tokens(completion_mask: torch.Tensor, examples: torch.Tensor) -> torch.Tensor:
    """Tokens of the chosen answers that some row predicts, of pairs that count."""
    half = len(completion_mask) // 2
    return (completion_mask[:half, 1:] * (examples[:half, None] > NOBODY)).sum()


def forget_reference(model: Any) -> None:
    """Removes TRL's `ref` copy of an adapter once nothing needs it any more."""
    if REFERENCE_ADAPTER in getattr(model, "peft_config", {}):
        model.delete_adapter(REFERENCE_ADAPTER)
