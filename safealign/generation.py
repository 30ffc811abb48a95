"""The drop-in for transformers: `hf.generate(input_ids, custom_generate=safealign.custom_generate, …)`.

`hf` is `model.hf` of a loaded export. transformers hands over ids; what the rules need to know (what the caller
wrote, where the answer begins, a prefix) is read back from them, see `data.unrendering`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation import (
    EosTokenCriteria,
    GenerateDecoderOnlyOutput,
    GenerationMode,
    LogitNormalization,
    MaxLengthCriteria,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from safealign.data.unrendering import Unrenderer
from safealign.decoding import Prompt
from safealign.decoding.options import NAMES
from safealign.errors import ConfigError
from safealign.model import BATCH_SIZE, SafeModel, safe_model_of
from safealign.modeling.hidden import evaluating
from safealign.session import Answer, Output

# What transformers turns its own arguments into, and the decoding option that does the same here.
_PROCESSORS: dict[type, tuple[str, str]] = {
    RepetitionPenaltyLogitsProcessor: ("repetition_penalty", "penalty"),
    MinNewTokensLengthLogitsProcessor: ("min_new_tokens", "min_new_tokens"),
    TemperatureLogitsWarper: ("temperature", "temperature"),
    TopKLogitsWarper: ("top_k", "top_k"),
    TopPLogitsWarper: ("top_p", "top_p"),
    MinPLogitsWarper: ("min_p", "min_p"),
}
_HARMLESS = (LogitNormalization, MaxLengthCriteria, EosTokenCriteria)
_PER_STEP = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


@dataclass
class SafeGenerateOutput(GenerateDecoderOnlyOutput):
    """What `return_dict_in_generate=True` returns: `sequences` `[B, T + new]`, and the `Output` of each row."""

    answers: tuple[Output, ...] | None = None


def custom_generate(
    model: torch.nn.Module,
    input_ids: torch.Tensor,
    logits_processor: Sequence[Any] = (),
    stopping_criteria: Sequence[Any] = (),
    generation_config: GenerationConfig | None = None,
    **kwargs: Any,
) -> torch.Tensor | SafeGenerateOutput:
    """Answers under the rules; called by `hf.generate(input_ids, custom_generate=safealign.custom_generate, …)`.

    Returns ids `[B, T + new]`, prompts included, shorter answers padded on the right, or a `SafeGenerateOutput`. As
    everywhere, a refusal that is begun at the limit is not cut short: an answer may exceed `max_new_tokens` by it.
    transformers' `max_new_tokens`, `min_new_tokens`, `do_sample`, `temperature`, `top_k`, `top_p`, `min_p`,
    `repetition_penalty` and `eos_token_id` (ends besides the template's own) keep their meaning. The other decoding
    options are keywords of `hf.generate` too: `schedule="every"`, `dependency="high"`, `stop=["\\n\\n"]` (transformers
    hands no tokenizer to a custom function, so that its own `stop_strings` cannot work there), `seed=0` (row i draws
    with seed + i; without it the seed is drawn from torch's generator, so `torch.manual_seed` decides), and
    `token_streamer=` for one prompt (transformers 5 keeps `streamer=` to itself).

    Prompts must be padded on the left and told apart by `attention_mask`. Raises ConfigError for a model without
    safety parts and for what cannot be done under the rules: beams, several answers to a prompt, a cache or
    embeddings from outside, processors and criteria of other kinds, scores.
    """
    safe, config = safe_model_of(model), generation_config or GenerationConfig()
    _refuse_impossible(config, input_ids, kwargs)
    chosen = _options(config, input_ids.shape[1], logits_processor, stopping_criteria)
    chosen |= {name: kwargs[name] for name in _OWN if name in kwargs}
    prompts = _prompts(safe, input_ids, kwargs.get("attention_mask"))
    streamer = _streamer(input_ids, kwargs)
    outputs = _answers(safe, prompts, chosen, _ids_of(config.eos_token_id), streamer)
    pad = next(iter(_ids_of(config.pad_token_id) or sorted(safe.renderer.eos_ids)), 0)
    longest = max(len(output.tokens) for output in outputs)
    rows = [[*output.tokens, *[pad] * (longest - len(output.tokens))] for output in outputs]
    sequences = torch.cat([input_ids, torch.tensor(rows, dtype=input_ids.dtype, device=input_ids.device)], dim=1)
    if not config.return_dict_in_generate:
        return sequences
    return SafeGenerateOutput(sequences=sequences, answers=tuple(outputs))  # type: ignore[arg-type]


# Decoding options that are no argument of transformers' own. It hands a custom function what its signature names.
_OWN = tuple(name for name in NAMES if not hasattr(GenerationConfig(), name))


def _named() -> inspect.Signature:
    found = inspect.signature(custom_generate)
    *front, rest = found.parameters.values()
    own = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in (*_OWN, "token_streamer")]
    return found.replace(parameters=[*front, *own, rest])


vars(custom_generate)["__signature__"] = _named()


# ---- what transformers asks for -----------------------------------------------------------------------------


def _refuse_impossible(config: GenerationConfig, input_ids: torch.Tensor, kwargs: dict[str, Any]) -> None:
    mode, cache = config.get_generation_mode(), kwargs.get("past_key_values")
    problems = {
        f"{mode.value.replace('_', ' ')}": mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE),
        "num_return_sequences above 1 (repeat the prompt instead)": (config.num_return_sequences or 1) > 1,
        "inputs_embeds (the rules judge tokens)": kwargs.get("inputs_embeds") is not None or not input_ids.shape[1],
        "a filled past_key_values": cache is not None and cache.get_seq_length() > 0,
    }
    problems |= {name: bool(getattr(config, name, False) or kwargs.get(name)) for name in _PER_STEP}
    wrong = [name for name, asked in problems.items() if asked]
    if wrong:
        raise ConfigError(f"safealign.custom_generate cannot do {', '.join(wrong)}: leave it out")


def _options(
    config: GenerationConfig, length: int, processors: Sequence[Any], criteria: Sequence[Any]
) -> dict[str, Any]:
    """transformers' settings as decoding options; what is off there is off here, whatever the export prefers."""
    limit = config.max_length if config.max_new_tokens is None else length + config.max_new_tokens
    found: dict[str, Any] = {
        "max_new_tokens": (limit or 0) - length,
        "min_new_tokens": max(0, (config.min_length or 0) - length),
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }
    for processor in processors:
        if type(processor) in _PROCESSORS:
            name, attribute = _PROCESSORS[type(processor)]
            found[name] = getattr(processor, attribute)
        elif not isinstance(processor, (*_HARMLESS, MinLengthLogitsProcessor)):
            raise _foreign(processor)
    for criterion in criteria:
        if isinstance(criterion, StopStringCriteria):
            found["stop"] = tuple(criterion.stop_strings)
        elif not isinstance(criterion, _HARMLESS):
            raise _foreign(criterion)
    return found | ({"seed": None} if config.do_sample else {"temperature": 0.0})


def _foreign(what: Any) -> ConfigError:
    name = type(what).__name__
    return ConfigError(f"safealign.custom_generate cannot use {name}: the rules would not know of it; leave it out")


def _streamer(input_ids: torch.Tensor, kwargs: dict[str, Any]) -> Any:
    """Where tokens go as they become certain; `generate` has shown the prompt to a `streamer` of its own."""
    own = kwargs.get("token_streamer")
    streamer = own if own is not None else kwargs.get("streamer")
    if streamer is not None and len(input_ids) > 1:
        raise ConfigError("a streamer takes one prompt at a time: stream a batch through model.session()")
    if own is not None:
        own.put(input_ids.cpu())
    return streamer


def _ids_of(ids: int | Sequence[int] | torch.Tensor | None) -> list[int]:
    return [] if ids is None else [int(id_) for id_ in torch.as_tensor(ids).flatten().tolist()]


# ---- prompts and answers ------------------------------------------------------------------------------------


def _prompts(safe: SafeModel, input_ids: torch.Tensor, mask: torch.Tensor | None) -> list[Prompt]:
    reader = Unrenderer(safe.renderer)
    kept = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.bool()
    if bool((kept[:, :-1] & ~kept[:, 1:]).any()) or not bool(kept[:, -1].all()):
        raise ConfigError("pad prompts on the left (tokenizer.padding_side='left'): an answer begins at their end")
    return [Prompt(reader.read(row[keep].tolist())) for row, keep in zip(input_ids, kept, strict=True)]


def _answers(
    safe: SafeModel, prompts: Sequence[Prompt], options: dict[str, Any], ends: Iterable[int], streamer: Any
) -> list[Output]:
    longest, seeds = max(prompt.n_text for prompt in prompts), safe.seeds(len(prompts), **options)
    room = options["max_new_tokens"] + 16
    session = safe.session(min(BATCH_SIZE, len(prompts)), longest=longest, room=room, ends=ends, **options)
    answers = [session.submit(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
    shown = 0
    with evaluating(safe.hf):
        while session.busy:
            session.step()
            shown = _stream(answers[0], shown, streamer)
    if streamer is not None:
        streamer.end()
    return [session.output_of(answer.row) for answer in answers]


def _stream(answer: Answer, shown: int, streamer: Any) -> int:
    """Hands on the tokens that became certain; returns how many there are."""
    if streamer is not None and answer.row.shown > shown:
        streamer.put(torch.tensor(answer.row.tokens[shown : answer.row.shown]))
    return answer.row.shown
