"""Under ZeRO-3, has the safety head's weights gathered whenever the head is called."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from safealign.modeling.safety_token import SafetyHead


class SplitHead(TrainerCallback):
    """Tells DeepSpeed that a head computes with the weights of the linear layer inside it.

    DeepSpeed gathers a module's own weights before its forward; the head reads its child's without calling it.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Registers the weights, which have been split by now; nothing where they have not."""
        heads = [module for module in model.modules() if isinstance(module, SafetyHead)]
        split = [(head, weight) for head in heads for weight in head.linear.parameters() if hasattr(weight, "ds_id")]
        if not split:
            return
        import deepspeed

        for head, weight in split:
            deepspeed.zero.register_external_parameter(head, weight)
