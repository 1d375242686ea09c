"""Use the engine from Hugging Face's `generate`:

    model.generate(
        **tokenizer(prompts, return_tensors="pt", padding=True),
        custom_generate=engine_generate,
        stopping_criteria=[CodeBlockStopping(tokenizer)],
        max_new_tokens=512, do_sample=True, temperature=1.0, top_k=0,
    )

This is the `Engine` that training uses, for one batch. `generate` prepares inputs, settings and criteria as usual
and passes them on. Rows end at an end-of-text token, at a tool call (see `stopping.stopped_at`, as in a plain
`generate`) or at `max_length`. Options that the engine does not support raise an error; none is ignored.
"""

from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from grpo_tir.engine.engine import Engine
from grpo_tir.errors import ModelError
from grpo_tir.generation.protocol import Request, Stopped
from grpo_tir.generation.sampling import Sampling
from grpo_tir.generation.stopping import CodeBlockStopping

_SUPPORTED_PROCESSORS = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)
_SUPPORTED_CRITERIA = (CodeBlockStopping, EosTokenCriteria, MaxLengthCriteria)


def engine_generate(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    max_rows: int = 0,
    kv_tokens: int = 0,
    **model_kwargs: Any,
) -> torch.Tensor:
    """Generate for `model.generate`, which calls this. Maps left-padded `input_ids` (B, T) to (B, T + new), where
    the new tokens are right-padded.

    Raises:
        ModelError: the engine cannot decode this model, or does not support a requested option.
    """
    _refuse_unsupported(logits_processor, stopping_criteria, generation_config, model_kwargs)
    stopping = next((each for each in stopping_criteria if isinstance(each, CodeBlockStopping)), None)
    engine = Engine(
        model, stopping, _sampling(generation_config), _eos_ids(generation_config), max_rows, kv_tokens
    )
    width = input_ids.shape[1]
    mask = model_kwargs.get("attention_mask", torch.ones_like(input_ids)).bool()
    # seeded by torch's global generator, as in any other `generate`
    keys = torch.randint(-(1 << 62), 1 << 62, (len(input_ids),)).tolist()
    for row, (ids, keep, key) in enumerate(zip(input_ids, mask, keys)):
        may_call = stopping is not None and (not stopping.may_stop or stopping.may_stop[row])
        engine.submit(Request(row, ids[keep].tolist(), key, generation_config.max_length - width, may_call))
    done: dict[int, Stopped] = {}
    while stopped := engine.step():
        done |= {each.row: each for each in stopped}
    engine.close()
    if stopping is not None:
        stopping.stopped_at = [
            width + len(done[row].token_ids) if done[row].reason == "call" else None for row in range(len(done))
        ]
    longest = max(len(each.token_ids) for each in done.values())
    output = input_ids.new_full((len(input_ids), width + longest), _pad_id(generation_config))
    output[:, :width] = input_ids
    for row, each in done.items():
        output[row, width : width + len(each.token_ids)] = input_ids.new_tensor(each.token_ids)
    return output


def _sampling(config: GenerationConfig) -> Sampling:
    if not config.do_sample:
        return Sampling(temperature=0)
    return Sampling(config.temperature or 1.0, config.top_p or 1.0, config.top_k or 0, config.min_p or 0.0)


def _eos_ids(config: GenerationConfig) -> list[int]:
    ids = config.eos_token_id
    return [ids] if isinstance(ids, int) else list(ids or [])


def _pad_id(config: GenerationConfig) -> int:
    return config.pad_token_id if config.pad_token_id is not None else next(iter(_eos_ids(config)), 0)


def _refuse_unsupported(
    processors: LogitsProcessorList,
    criteria: StoppingCriteriaList,
    config: GenerationConfig,
    model_kwargs: dict[str, Any],
) -> None:
    unsupported = [type(each).__name__ for each in processors if not isinstance(each, _SUPPORTED_PROCESSORS)]
    unsupported += [type(each).__name__ for each in criteria if not isinstance(each, _SUPPORTED_CRITERIA)]
    unsupported += ["return_dict_in_generate"] if config.return_dict_in_generate else []
    unsupported += ["num_beams"] if (config.num_beams or 1) > 1 else []
    past = model_kwargs.get("past_key_values")
    if past is not None and past.get_seq_length() > 0:
        unsupported.append("past_key_values")
    if unsupported:
        raise ModelError(f"engine_generate does not support {', '.join(unsupported)}; omit custom_generate")
