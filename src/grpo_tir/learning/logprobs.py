"""Compute log-probs and entropies of model tokens: the tokens that the policy sampled.

    hidden (B, T, H) ── positions before a model token ──► (N, H) ── head, / temperature ──► (N, V) ──► (N,)

The head runs on model tokens only: prompt, tool output and padding get no logits. If N x V exceeds a budget, the
head runs in chunks that are recomputed in the backward pass. Logits, probabilities and gradient share one buffer.

Shapes: B rows, T tokens, N model tokens, H hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from grpo_tir.learning.fast_softmax import LogSoftmaxInPlace
from grpo_tir.learning.packing import is_packing, pack, upload
from grpo_tir.learning.prepare import Float32Head, float32_linear, follow_autocast, plain_head


class TokenLogprobs(nn.Module):
    """Wrap the policy for learning: one forward that DDP and DeepSpeed can hook."""

    def __init__(self, model: Any, temperature: float = 1.0, logits_mb: float = 256) -> None:
        super().__init__()
        self.chunk = self._chunk
        self.model = model
        self.temperature = temperature
        self.logits_mb = logits_mb
        self.plain = plain_head(model)
        # Hold the head's weights here: ZeRO-3 gathers the parameters of a module when it is called. If each chunk
        # called the head, ranks with different numbers of chunks would not gather together.
        head: Any = model.get_output_embeddings() if self.plain else nn.Module()
        self.weight: Any = getattr(head, "weight", None)  # (V, H)
        self.bias: Any = getattr(head, "bias", None)  # (V,)
        self.float32 = isinstance(head, Float32Head)
        follow_autocast(model)
        self.watched: int | None = None
        """Token id; each forward stores its probability at every model token in `watched_probs`, (B, T)."""

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, loss_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Map ids, attention and loss mask (B, T) to log-probs (with gradient) and entropies (without), (B, T).
        Both are 0 where the loss mask is 0. Position t holds the log-prob of token t. Tensors of the host are
        moved to the model's device, and save the wait for the layout, which depends on their values."""
        # 1. Lay out the rows on the host.
        device = next(self.model.parameters()).device
        input_ids, attention_mask, loss_mask = (each.cpu() for each in (input_ids, attention_mask, loss_mask))
        chosen = loss_mask.bool().clone()
        chosen[:, 0] = False  # nothing predicts the first token
        if is_packing(self.model):
            inputs, predicts = pack(input_ids, attention_mask, chosen, device)
        else:
            inputs = {"input_ids": upload(input_ids, device), "attention_mask": upload(attention_mask, device)}
            predicts = torch.nn.functional.pad(chosen[:, 1:], (0, 1))  # (B, T) positions before a model token
        positions, places = (
            upload(mask.flatten().nonzero()[:, 0], device) for mask in (predicts, chosen)
        )  # each (N,)
        tokens = upload(input_ids[chosen], device)
        # 2. Run the model, and compute the log-probs of the chosen tokens only.
        if self.plain:
            output = self.model.get_decoder()(**inputs, use_cache=False).last_hidden_state
        else:
            output = self.model(**inputs, use_cache=False).logits
        flat = output.flatten(0, 1)[positions]  # (N, H) or (N, V)
        logprobs, entropies, watched = self._token_logprobs(flat, tokens)
        empty = torch.zeros(input_ids.numel(), dtype=logprobs.dtype, device=device)
        found, entropy, self.watched_probs = (
            empty.index_copy(0, places, values).view(input_ids.shape) for values in (logprobs, entropies, watched)
        )
        return found, entropy

    def _token_logprobs(self, flat: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map hidden states (N, H), or logits (N, V), and token ids (N,) to log-probs, entropies and probabilities
        of the watched token, (N,)."""
        size = max(1, int(self.logits_mb * 2**20) // (4 * self.model.config.get_text_config().vocab_size))
        if flat.shape[0] <= size:
            return self.chunk(flat, tokens)
        pieces = [
            checkpoint(self.chunk, part, ids, use_reentrant=False)
            for part, ids in zip(flat.split(size), tokens.split(size), strict=True)
        ]
        return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))

    def _chunk(self, flat: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # (n, V) in float32, also under autocast, and in a buffer that may be overwritten
        if self.plain and self.float32:
            logits = float32_linear(flat, self.weight, self.bias)
        elif self.plain:
            logits = torch.nn.functional.linear(flat, self.weight, self.bias).float()
        else:
            logits = flat.to(torch.float32, copy=True)
        with torch.no_grad():  # before the buffer is overwritten
            margin = (logits[:, self.watched or 0] - logits.gather(-1, tokens[:, None])[:, 0]) / self.temperature
        # torch.compile fuses the plain version
        log_softmax = plain_log_softmax if torch.compiler.is_compiling() else LogSoftmaxInPlace.apply
        logprobs, entropies = log_softmax(logits, tokens, self.temperature)
        return logprobs, entropies, (margin + logprobs.detach()).exp()


def plain_log_softmax(
    logits: torch.Tensor, tokens: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the log-probs (n,) of `tokens` (n,) from `logits` (n, V), and entropies (n,) without gradient."""
    logits = logits / temperature
    log_z = logits.logsumexp(-1)  # (n,)
    logprobs = logits.gather(-1, tokens[:, None])[:, 0] - log_z
    with torch.no_grad():
        entropy = log_z - (logits.softmax(-1) * logits).sum(-1)
    return logprobs, entropy
