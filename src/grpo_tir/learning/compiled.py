"""Compile the learner's decoder layers and head, so that a GPU does not wait for the host to launch operators.

The layers share their graphs, and one graph serves all lengths. Packed attention stays outside the graphs, because
its arguments depend on the lengths of the rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch._dynamo
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from grpo_tir.learning.logprobs import TokenLogprobs

Layers = Callable[[], AbstractContextManager[None]]
"""Makes the context in which the learner runs the policy."""


def choose_layers(policy: TokenLogprobs, run: Callable[[], torch.Tensor], tolerance: float) -> tuple[Layers, str]:
    """Measure whether compiled layers are faster here. Return the faster context, and a line that says so.

    Args:
        policy: the learner's module.
        run: computes the log-probs of a micro-batch and a backward pass, and returns the log-probs.
        tolerance: largest mean gap, in nats, between the log-probs of plain and compiled layers.
    """
    compiled = compile_layers(policy)
    try:
        (plain_seconds, plain), (seconds, logprobs) = (_timed(run, layers) for layers in (nullcontext, compiled))
    except Exception as error:  # no compiler, or an operator that it does not know
        reason = (str(error).strip().splitlines() or [""])[0]
        return nullcontext, f"learner: layers not compiled ({type(error).__name__}: {reason})"
    gap = float((logprobs - plain).abs().mean())
    best = compiled if gap <= tolerance and seconds < plain_seconds else nullcontext
    figures = f"plain {plain_seconds * 1e3:.0f} ms, compiled {seconds * 1e3:.0f} ms, gap {gap:.2g} nats"
    return best, f"learner: {'plain' if best is nullcontext else 'compiled'} layers ({figures})"


def _timed(run: Callable[[], torch.Tensor], layers: Layers) -> tuple[float, torch.Tensor]:
    """Return the seconds of `run`, and its log-probs."""
    with layers():
        run().detach().sum().item()  # compiles, and waits for the device
        start = time.perf_counter()
        logprobs = run().detach()
        logprobs.sum().item()
        return time.perf_counter() - start, logprobs


def compile_layers(policy: TokenLogprobs) -> Layers:
    """Return a context in which decoder layers and head run compiled. The compilation takes place at their first
    call. Outside of the context, for the engine, the same layers run uncompiled."""
    layers = [module for module in policy.modules() if isinstance(module, GradientCheckpointingLayer)]
    # The call of a layer with gradient checkpointing cannot be compiled, so its parts are compiled instead.
    parts: list[nn.Module] = [
        part for layer in layers for part in (layer.children() if layer.gradient_checkpointing else [layer])
    ]
    forwards = [torch.compile(part.forward, dynamic=True) for part in parts]
    chunk = torch.compile(policy.chunk, dynamic=True)

    @contextmanager
    def compiled() -> Iterator[None]:
        plain = policy.chunk
        for part, forward in zip(parts, forwards, strict=True):
            part.forward = forward
        policy.chunk = chunk
        try:
            # With `dynamic`, a float such as the epsilon of a norm becomes a tensor on the CPU. Even on a GPU, a
            # C++ compiler then runs, for a minute or more.
            with torch._dynamo.config.patch(specialize_float=True):
                yield
        finally:
            policy.chunk = plain
            for part in parts:
                del part.forward

    return compiled
