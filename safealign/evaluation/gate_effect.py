"""Does the gate matter? What a request's first answer token owes to the verdict in the slot.

Each request is read with its own slot and with the slot of a request of the other label, at the same position; what
changes in the log-probability of the refusal's opening is the gate's doing alone. A head that reads middle layers may
leave the deeper keys and values empty of any verdict; then this figure is near zero, and the table says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from safealign.data.records import Record
from safealign.evaluation.metrics.rates import Estimate, mean
from safealign.layout import Rendered, request_row
from safealign.layout.masks import additive
from safealign.model import SafeModel
from safealign.modeling.attach import RowPlan, SafetyParts


def gate_effect(model: SafeModel, harmful: Sequence[Record], benign: Sequence[Record]) -> Estimate:
    """Mean rise, in nats, of the log-probability of the trigger's first token when the slot says malicious.

    Pairs the i-th harmful with the i-th benign request; each of both is read with either slot, and the interval is
    over the requests. Raises ValueError for a model without safety parts or without requests.
    """
    if model.parts is None:
        raise ValueError("a model without safety parts has no gate")
    first = model.renderer.trigger_ids(model.options.trigger, mid_answer=False)[0]
    rises = []
    for bad, good in zip(harmful, benign, strict=False):
        slots = [model.renderer.render(record.prompt) for record in (bad, good)]
        for text in slots:
            malicious, harmless = (
                float(opening_logits(model.parts, text, slot, model.rows.placement).log_softmax(-1)[first])
                for slot in slots
            )
            rises.append(malicious - harmless)
    return mean(rises)


@torch.no_grad()
def opening_logits(parts: SafetyParts, text: Rendered, slot: Rendered, placement: str = "append") -> torch.Tensor:
    """Logits `[V]` of the first answer token of `text` when the slot holds the verdict on `slot`.

    Both prompts are rows of one forward, each blind to the other; the safety row reads `slot`'s content, stands where
    `text`'s own would stand, and is seen by the rows of `text` that see its own.
    """
    n_slot, n_text = len(slot.input_ids), len(text.input_ids)
    rows = n_slot + n_text
    allowed = torch.zeros(rows + 1, rows + 1, dtype=torch.bool)
    allowed[:n_slot, :n_slot] = torch.ones(n_slot, n_slot).tril().bool()
    allowed[n_slot:rows, n_slot:rows] = torch.ones(n_text, n_text).tril().bool()
    allowed[n_slot + text.query_end : rows, rows] = True
    for span in request_row(slot, placement).attends:
        allowed[rows, span.start : span.end] = True
    allowed[rows, rows] = True
    positions = [*range(n_slot), *range(n_text), request_row(text, placement).position]
    lm: Any = parts.lm
    device = lm.device
    mask = additive(allowed, torch.float32)[None, None].to(device)
    plan = RowPlan(1, mask, torch.tensor([positions], device=device), capture=False)
    with parts.armed(plan):
        ids = torch.tensor([[*slot.input_ids, *text.input_ids]], device=device)
        found: torch.Tensor = lm(input_ids=ids, use_cache=False, logits_to_keep=1).logits
    return found[0, -1].float()
