"""The safety objective as a mixin over TRL's trainers: arms the safety rows, adds λ·L_cls, gathers verdicts.

L = L_trl + λ·L_cls (Li & Kim, ICML 2025, arXiv 2505.17072). TRL's own loss is computed by TRL: the decoder's hook
hands its language-model head the completion positions only, and `shift_labels` says which tokens they predict.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from safealign.layout.collate import SafetyBatch
from safealign.modeling.attach import HEAD_NAME, Capture, SafetyParts
from safealign.modeling.features import batch_logits, plan_for
from safealign.objectives.safety_bce import safety_bce
from safealign.training.examples import IGNORED
from safealign.training.uneven import UnevenMixin
from safealign.training.verdict_metrics import verdict_metrics

SAFETY_COLUMNS = ("example",)
OWN_LOSSES = ("lm/loss", "safety/loss", "dpo/loss", "dpo/sft_loss")  # logged by us, each rank its part


@dataclass(frozen=True)
class SafetyObjective:
    """Weight and shape of the safety loss; `head_learning_rate` applies to the safety head alone."""

    lambda_cls: float = 0.1
    pos_weight: float | None = None
    label_smoothing: float = 0.0
    head_learning_rate: float | None = None


@dataclass
class Verdicts:
    """Safety logits gathered over one evaluation; one entry per labelled row."""

    logits: list[torch.Tensor] = field(default_factory=list)
    labels: list[torch.Tensor] = field(default_factory=list)
    kinds: list[torch.Tensor] = field(default_factory=list)
    examples: list[torch.Tensor] = field(default_factory=list)
    places: list[torch.Tensor] = field(default_factory=list)

    def add(self, logits: torch.Tensor, batch: SafetyBatch, examples: torch.Tensor) -> None:
        """Keeps the labelled rows of a batch."""
        chosen = batch.labels >= 0
        self.logits.append(logits.detach()[chosen].float().cpu())
        self.labels.append(batch.labels[chosen].cpu())
        self.kinds.append(batch.kinds[chosen].cpu())
        self.examples.append(examples[:, None].expand_as(chosen)[chosen].cpu())
        self.places.append(torch.arange(chosen.shape[1]).expand(chosen.shape)[chosen.cpu()])

    def tensors(self) -> dict[str, torch.Tensor]:
        """All rows so far: `logits`, `labels`, `kinds`, `examples`, `places` (row within its example), each `[N]`."""
        names = ("logits", "labels", "kinds", "examples", "places")
        return {name: torch.cat(getattr(self, name)) if getattr(self, name) else torch.empty(0) for name in names}


def compact_labels(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which text rows predict a trained token, `[B, T]` bool, and what they predict, `[1, N]`.

    A batch without any keeps its first row with an ignored label, so that the loss stays a differentiable zero.
    """
    chosen = torch.zeros_like(labels, dtype=torch.bool)
    chosen[:, :-1] = labels[:, 1:] != IGNORED
    if not chosen.any():
        chosen[0, 0] = True
        return chosen, labels.new_full((1, 1), IGNORED)
    return chosen, labels[:, 1:][chosen[:, :-1]].unsqueeze(0)


class SafetyLossMixin(UnevenMixin):
    """Adds the safety loss to a TRL trainer; `parts` and `objective` are set after construction."""

    parts: SafetyParts
    objective: SafetyObjective
    verdicts: Verdicts
    n_safety_rows: torch.Tensor | None = None
    categories: dict[int, str] | None = None

    def set_safety(self, parts: SafetyParts, objective: SafetyObjective) -> None:
        """Hands the trainer its safety modules and keeps them in fp32 whatever TRL cast them to."""
        self.parts, self.objective, self.verdicts = parts, objective, Verdicts()
        parts.token.float()
        parts.head.float()

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        columns: list[str] = self._signature_columns  # type: ignore[has-type]
        self._signature_columns = [*columns, *(c for c in SAFETY_COLUMNS if c not in columns)]

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Counts the labelled safety rows of all micro-batches of a step, as TRL counts its target tokens."""
        batches, n_items = super().get_batch_samples(*args, **kwargs)
        count = sum(((batch["safety_labels"] >= 0).sum() for batch in batches if "safety_labels" in batch), 0)
        self.n_safety_rows = self._over_ranks(torch.as_tensor(count))
        return batches, n_items

    def _over_ranks(self, count: torch.Tensor) -> torch.Tensor:
        accelerator = self.accelerator  # type: ignore[attr-defined]
        if accelerator.num_processes == 1:
            return count
        return accelerator.gather(count.to(accelerator.device)).sum() / accelerator.num_processes

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss under the layout's mask plus λ·BCE of the safety rows."""
        batch = SafetyBatch.pop_from(inputs)
        examples = inputs.pop("safety_example", None)
        if batch is None:
            return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        compact, shift_labels = compact_labels(inputs["labels"])
        inputs["shift_labels"] = shift_labels
        with self.parts.armed(plan_for(batch, compact)) as capture, self.counting(examples):
            loss = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        self._note("lm/loss", loss)
        return loss + self._safety_loss(capture, batch, examples)

    def _note(self, name: str, share: torch.Tensor) -> None:
        """Keeps a micro-batch's share of one of `OWN_LOSSES` for the log, which has the mean of all ranks.

        Shares add up to the step's loss (an average over ranks, where there are several), and the log averages.
        """
        mode, parts = "eval", 1
        if self._training:
            mode, parts = "train", self.current_gradient_accumulation_steps  # type: ignore[attr-defined]
        self._metrics[mode][name].append(share.item() * parts)  # type: ignore[attr-defined]

    @property
    def _training(self) -> bool:
        trainer: Any = self
        return bool(trainer.model.training)

    def _safety_loss(self, capture: Capture, batch: SafetyBatch, examples: torch.Tensor) -> torch.Tensor:
        logits = batch_logits(self.parts, capture, batch)
        options = {"pos_weight": self.objective.pos_weight, "label_smoothing": self.objective.label_smoothing}
        # Of the whole step's rows while training, of all ranks.
        n_rows = self.n_safety_rows if self._training else None
        step = safety_bce(logits, batch.labels, n_rows=n_rows, **options)  # type: ignore[arg-type]
        self._note("safety/loss", step)
        if not self._training:
            self.verdicts.add(logits, batch, examples)
            return self.objective.lambda_cls * step
        return self.objective.lambda_cls * step * self._loss_divisor()

    def _loss_divisor(self) -> int:
        """What the trainer will divide the loss of a micro-batch by: nothing where TRL scaled it by itself.

        The safety loss is a mean over all micro-batches of the step already.
        """
        divided: bool | None = self.loss_is_scaled_for_ga  # type: ignore[attr-defined]
        return self.current_gradient_accumulation_steps if divided is False else 1  # type: ignore[attr-defined]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """TRL's, with our own losses as they are over all ranks (which all call it)."""
        trainer: Any = self
        kept = trainer._metrics["train" if self._training else "eval"]
        means = {name: sum(kept[name]) / len(kept[name]) for name in OWN_LOSSES if kept.get(name)}
        if means and trainer.accelerator.num_processes > 1:
            mine = torch.tensor([list(means.values())], dtype=torch.float64, device=trainer.accelerator.device)
            means = dict(zip(means, trainer.accelerator.gather(mine).mean(dim=0).tolist(), strict=True))
        kept.update({name: [mean] for name, mean in means.items()})
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """TRL's evaluation, then AUROC and recall of request and window verdicts under `eval_safety/`."""
        self.take_verdicts()
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)  # type: ignore[misc]
        found = verdict_metrics(self.take_verdicts(), self.categories or {})
        extra = {f"eval_safety/{name}": value for name, value in found.items()}
        if extra:
            self.log(dict(extra))
        return {**metrics, **extra}

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's optimizer with the safety head in a group of its own, at its own learning rate."""
        optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        rate = self.objective.head_learning_rate
        if rate is None:
            return optimizer
        model = self.model  # type: ignore[attr-defined]
        own = {id(p) for name, p in model.named_parameters() if HEAD_NAME in name}
        moved = [p for group in optimizer.param_groups for p in group["params"] if id(p) in own]
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in own]
        optimizer.add_param_group({**optimizer.defaults, "params": moved, "lr": rate, "weight_decay": 0.0})
        return optimizer

    def take_verdicts(self) -> dict[str, torch.Tensor]:
        """The verdicts gathered since the last call, those of all ranks (which all call it)."""
        taken, self.verdicts = self.verdicts.tensors(), Verdicts()
        return of_all_ranks(taken, self.accelerator)  # type: ignore[attr-defined]


def of_all_ranks(verdicts: dict[str, torch.Tensor], accelerator: Any) -> dict[str, torch.Tensor]:
    """The verdicts of every rank, each row once: samplers repeat examples so that all ranks have as many batches."""
    if accelerator.num_processes == 1:
        return verdicts
    names = list(verdicts)
    rows = torch.stack([verdicts[name].double() for name in names], dim=1).to(accelerator.device)
    rows = accelerator.gather(accelerator.pad_across_processes(rows, pad_index=-1)).cpu()
    rows = rows[rows[:, names.index("examples")] >= 0]
    keys = rows[:, [names.index("examples"), names.index("places")]]
    _, first = np.unique(keys.numpy(), axis=0, return_index=True)
    rows = rows[torch.from_numpy(first)]
    found = {name: rows[:, i] for i, name in enumerate(names)}
    return {name: found[name].float() if name in ("logits", "labels") else found[name].long() for name in names}
