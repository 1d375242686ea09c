"""Check whether the engine can decode a model, and prepare a model for decoding."""

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from grpo_tir.engine.kv_cache import ATTENTION, KVCache, RaggedBatch
from grpo_tir.engine.paged_cache import PagedCache

_REASONS: WeakKeyDictionary[PreTrainedModel, str | None] = WeakKeyDictionary()


def unsupported_reason(model: PreTrainedModel) -> str | None:
    """Return in one line why the engine cannot decode a model; None if it can. Cached for each model."""
    if model not in _REASONS:
        _REASONS[model] = _find_reason(model)
    return _REASONS[model]


def _find_reason(model: PreTrainedModel) -> str | None:
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if model.config.is_encoder_decoder:
        return "it is an encoder-decoder"
    if not getattr(model, "_supports_attention_backend", False):
        return f"{type(model).__name__} does not take attention functions (AttentionInterface)"
    if kinds != {"full_attention"}:
        return f"some layers use {', '.join(sorted(kinds - {'full_attention'}))}"
    if getattr(config, "sliding_window", None) and not getattr(config, "layer_types", None):
        return f"its attention has a sliding window of {config.sliding_window} tokens"
    if getattr(config, "attn_logit_softcapping", None):
        return "its attention scores are soft-capped"
    if rope.get("rope_type") in ("dynamic", "longrope"):
        return f"its {rope['rope_type']} RoPE depends on the longest row of the batch"
    return _probe(model)


@torch.no_grad()
def _probe(model: PreTrainedModel) -> str | None:
    """Decode a few tokens of two rows and compare with plain forwards. This finds faults that no list covers."""
    rows = [[token % model.config.get_text_config().vocab_size for token in row] for row in ([5, 6, 7, 8], [9, 3])]
    cache = make_cache(model)
    cache.resize(2, 8, 0)
    try:
        with decoding(model):
            for feeds in ([(0, 0, rows[0][:2]), (1, 0, rows[1][:1])], [(0, 2, rows[0][2:]), (1, 1, rows[1][1:])]):
                batch = RaggedBatch(cache, feeds)
                ours = model(
                    input_ids=batch.input_ids[None],
                    position_ids=batch.positions[None],
                    logits_to_keep=2,
                    use_cache=False,
                    batch=batch,
                ).logits[0]
    except Exception as error:  # a model of another library may raise anything
        return f"its forward fails on a ragged batch ({type(error).__name__}: {str(error).splitlines()[0]})"
    with _eval(model):
        device = cache.device
        plain = torch.stack(
            [model(torch.tensor([row], device=device), use_cache=False).logits[0, -1] for row in rows]
        )
    gap = (ours - plain).abs().max() / plain.std()
    return None if gap < 0.1 else f"its ragged forward differs from a plain one by {gap:.2g} standard deviations"


def make_cache(model: PreTrainedModel, tokens: int = 0, page: int = 0) -> KVCache | PagedCache:
    """Make an empty cache in the model's compute type, in pages of `page` tokens if that is not 0."""
    device = model.device
    autocast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if autocast else model.dtype
    if page:
        return PagedCache(*kv_shape(model), device, dtype, page)
    return KVCache(*kv_shape(model), device, dtype, tokens)


def kv_shape(model: PreTrainedModel) -> tuple[int, int, int]:
    """Return layers, KV heads and head dimension. Twice their product is the KV size of one token."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return config.num_hidden_layers, kv_heads, head_dim


@contextmanager
def decoding(model: PreTrainedModel) -> Iterator[None]:
    """Let a model use our attention, without dropout and gradients. Uses `no_grad`, not `inference_mode`: a buffer
    that a module makes meanwhile must still be usable for training."""
    previous = model.config._attn_implementation
    model.config._attn_implementation = ATTENTION
    try:
        with _eval(model), torch.no_grad():
            yield
    finally:
        model.config._attn_implementation = previous


@contextmanager
def _eval(model: PreTrainedModel) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
