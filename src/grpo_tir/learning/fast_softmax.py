"""Compute log-softmax in place, with a custom backward pass."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable


class LogSoftmaxInPlace(torch.autograd.Function):
    """Compute `plain_log_softmax` in the buffer of its logits. The forward pass overwrites it with probabilities,
    the backward pass with d logprob / d logits = (onehot(token) - probabilities) / temperature. The plain version
    needs three such buffers and reads them twenty times. Here, on a CPU, a few rows at a time are processed, which
    fit in its cache."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, tokens: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Map logits (n, V) and token ids (n,) to log-probs (n,) and entropies (n,)."""
        logits, logprobs, entropies = logits.detach(), [], []
        for part, chosen in zip(*_in_cache(logits, tokens), strict=True):
            if temperature != 1:
                part.div_(temperature)
            part.sub_(part.amax(-1, keepdim=True))
            probs = part.exp()
            z = probs.sum(-1)  # (rows,)
            logprobs.append(part.gather(-1, chosen[:, None])[:, 0] - z.log())
            entropies.append(z.log() - (probs * part).sum(-1) / z)  # autocast would run `vecdot` in bf16
            torch.div(probs, z[:, None], out=part)
        ctx.save_for_backward(logits, tokens)
        ctx.temperature = temperature
        entropy = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy)
        return torch.cat(logprobs), entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Map the gradient of the log-probs (n,) to that of the logits (n, V)."""
        probs, tokens = ctx.saved_tensors
        scale = (gradient / ctx.temperature)[:, None]
        for part, share, chosen in zip(*_in_cache(probs, scale, tokens), strict=True):
            part.mul_(-share).scatter_add_(-1, chosen[:, None], share)
        return probs, None, None


def _in_cache(rows: torch.Tensor, *others: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], ...]:
    """Split `rows` (n, V), and other tensors with n rows, into parts that fit in the cache of a CPU. On a GPU
    make one part: to launch operators for small parts takes the host longer than the GPU needs to run them."""
    size = max(1, (1 << 19) // rows.shape[-1]) if rows.device.type == "cpu" else len(rows)
    return tuple(tensor.split(size) for tensor in (rows, *others))
