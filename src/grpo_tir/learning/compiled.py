"""Compile the learner's decoder layers and head, so that a GPU does not wait for the host to launch operators.

The layers share their graphs, and one graph serves all lengths. Packed attention stays outside the graphs, because
its arguments depend on the lengths of the rows.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch._dynamo
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from grpo_tir.config import Config
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.errors import ConfigError
from grpo_tir.learning.batching import MicroBatch, TrainingSample, collate
from grpo_tir.learning.certificate import TOLERANCE
from grpo_tir.learning.logprobs import TokenLogprobs

Context = Callable[[], AbstractContextManager[None]]


class Layers:
    """Make the context in which the learner runs the policy: plain layers, or compiled ones.

    Raises:
        ConfigError: `model.compile` is true under DeepSpeed.
    """

    def __init__(
        self, policy: TokenLogprobs, config: Config, runtime: Runtime, log: Callable[[str], None]
    ) -> None:
        if config.model.compile and runtime.stage:
            raise ConfigError("model.compile does not work with DeepSpeed: set it to false")
        self.policy, self.runtime, self.log = policy, runtime, log
        self.context: Context = compile_layers(policy) if config.model.compile else nullcontext
        measured = runtime.device.type == "cuda" and not runtime.stage and not config.train.deterministic
        self.chosen = config.model.compile is not None or not measured

    def __call__(self) -> AbstractContextManager[None]:
        return self.context()

    def choose(self, part: Sequence[TrainingSample], wrapped: Any) -> None:
        """Measure on the first micro-batch whether compiled layers are faster here, and as exact. `wrapped` is the
        policy as `Runtime.prepare` returned it."""
        if self.chosen:
            return
        self.log("learner: compiling and timing its layers; takes about a minute, once")
        batch, compiled, self.chosen = collate(part, self.runtime.device), compile_layers(self.policy), True
        try:
            plain_seconds, plain = self._time(nullcontext, batch, wrapped)
            seconds, logprobs = self._time(compiled, batch, wrapped)
        except Exception as error:  # no compiler, or an operator that it does not know
            reason = (str(error).strip().splitlines() or [""])[0]
            self.log(f"learner: layers not compiled ({type(error).__name__}: {reason})")
        else:
            gap = float((logprobs - plain).abs().mean())
            better = gap <= TOLERANCE["bf16" if self.runtime.bf16 else "fp32"] and seconds < plain_seconds
            self.context = compiled if better else nullcontext
            figures = f"plain {plain_seconds * 1e3:.0f} ms, compiled {seconds * 1e3:.0f} ms, gap {gap:.2g} nats"
            self.log(f"learner: {'compiled' if better else 'plain'} layers ({figures})")
        self.policy.zero_grad()

    def _time(self, context: Context, batch: MicroBatch, wrapped: Any) -> tuple[float, torch.Tensor]:
        """Return the seconds of a forward and a backward pass, and the log-probs."""
        with context():
            for _ in range(2):  # the first one compiles
                start = time.perf_counter()
                with self.runtime.autocast():
                    logprobs, _ = self.policy(*batch.host)
                with self.runtime.hold_sync(wrapped, hold=True):
                    logprobs.sum().backward()
                logprobs.sum().item()  # waits for the device
            return time.perf_counter() - start, logprobs.detach()


def compile_layers(policy: TokenLogprobs) -> Context:
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
