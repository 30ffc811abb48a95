"""4-bit base weights under an adapter (QLoRA, arXiv 2305.14314): where they run, and how they become plain again."""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import asdict, dataclass
from typing import Any

import torch

from safealign.errors import CheckpointError, ConfigError

_SAFETY = "safety_"


@dataclass(frozen=True)
class Quantization:
    """`kind`: nf4 or fp4. `double`: whether the scales are quantised as well."""

    kind: str
    double: bool

    def config(self, compute: torch.dtype) -> Any:
        """What `from_pretrained` takes; matrices are multiplied in `compute`. Raises ConfigError where none can run."""
        require_bitsandbytes()
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.kind,
            bnb_4bit_use_double_quant=self.double,
            bnb_4bit_compute_dtype=compute,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return asdict(self)


def require_bitsandbytes() -> None:
    """Raises ConfigError, with the way out, where 4-bit weights cannot run."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "4-bit base weights need bitsandbytes, which is not installed: pip install bitsandbytes, or train on "
            "weights as they are with adapter=lora"
        )
    if not torch.cuda.is_available():
        raise ConfigError(
            "4-bit base weights need a CUDA GPU, and this machine shows none: train on weights as they are with "
            "adapter=lora"
        )


def quantization_of(model: Any) -> Quantization | None:
    """How a loaded causal LM (or PEFT's wrapper of it) is quantised; None if it is not."""
    found = getattr(model.config, "quantization_config", None)
    if found is None or not getattr(found, "load_in_4bit", False):
        return None
    return Quantization(str(found.bnb_4bit_quant_type), bool(found.bnb_4bit_use_double_quant))


def merged_twin(model: Any, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A plain causal LM on the CPU that computes what `model`, an adapter over (quantised) weights, computes.

    The base is what the 4-bit weights stand for, not the weights they were made of: the adapter and the safety head
    were trained on the former. Raises CheckpointError when a weight has no counterpart.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    causal = model.get_base_model()
    config = copy.deepcopy(causal.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    twin = type(causal)(config).to(dtype)
    weights = {_plain_name(n): _dequantised(p) for n, p in causal.named_parameters() if not _is_ours(n)}
    own = dict(twin.named_parameters())
    if lost := own.keys() ^ weights.keys():
        raise CheckpointError(f"cannot merge the adapter: {', '.join(sorted(lost)[:3])} has no counterpart")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])
    adapter = copy.deepcopy(model.peft_config["default"])
    adapter.modules_to_save, adapter.inference_mode = None, False
    state = {n: v.cpu() for n, v in get_peft_model_state_dict(model).items() if f".{_SAFETY}" not in n}
    wrapped = get_peft_model(twin, adapter)
    set_peft_model_state_dict(wrapped, state)
    return wrapped.merge_and_unload().eval()


def _dequantised(weight: torch.nn.Parameter) -> torch.Tensor:
    if type(weight).__name__ != "Params4bit":
        return weight.detach().cpu()
    from peft.utils.integrations import dequantize_bnb_weight

    return dequantize_bnb_weight(weight).cpu()


def _is_ours(name: str) -> bool:
    return ".lora_" in name or name.startswith(_SAFETY)


def _plain_name(name: str) -> str:
    return name.replace(".base_layer.", ".")
