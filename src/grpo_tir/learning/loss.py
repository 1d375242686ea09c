"""Compute the clipped policy loss of GRPO and its variants.

For token t of rollout i with ratio  w_it = exp(logprob_it - old_logprob_it)  and advantage A_i:

    L_it = -min(w_it A_i, clip(w_it, 1 - clip_low, 1 + clip_high) A_i)  [+ kl_coef KL_it]

    token     sum_it L_it / model tokens                       DAPO, arXiv 2503.14476, eq. 8
    sequence  sum_i (mean_t L_it) / rollouts                   GRPO, arXiv 2402.03300, eq. 3
    constant  sum_it L_it / (rollouts x max length)            Dr. GRPO, arXiv 2503.20783

GSPO (arXiv 2507.18071) replaces w_it by the geometric mean of the response's ratios. CISPO (arXiv 2506.13585,
eq. 4 and 5) clips only the weight, so that every token keeps a gradient (sg: stop-gradient):

    L_it = -sg(clip(w_it, 1 - clip_low, 1 + clip_high)) A_i logprob_it

A_i may also differ by token (`turns.turn_returns`). Tool tokens have loss_mask 0 and receive no gradient. The
denominator is that of the full optimizer step, over all ranks and micro-batches, and is passed in as `normalizer`.
The gradients of the micro-batches then sum to that of the step.

Shapes: B rollouts, T tokens.
"""

from typing import Literal

import torch

Aggregation = Literal["token", "sequence", "constant"]


def grpo_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    loss_mask: torch.Tensor,
    *,
    aggregation: Aggregation = "token",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    normalizer: float | None = None,
    ratio: Literal["token", "sequence"] = "token",
    objective: Literal["clip", "cispo"] = "clip",
    ref_logprobs: torch.Tensor | None = None,
    kl_coef: float = 0.0,
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Compute the loss of one micro-batch.

    Args:
        logprobs: (B, T) of the policy, with gradient. old_logprobs: (B, T) of the policy that sampled.
        advantages: (B,), or (B, T) for credit by token. loss_mask: (B, T), 1 at model tokens.
        normalizer: denominator; None means that of these rows (`count`).
        ratio: `token`, or `sequence` for GSPO. objective: `clip` or `cispo`.
        ref_logprobs: (B, T), required if `kl_coef` is not 0.
        weights: (B, T) truncated importance weights between learner and generator.

    Returns:
        The scalar loss, and sums over tokens to be divided by `tokens`: `clipped_low`, `clipped_high`, `kl`.
    """
    mask = loss_mask.bool()  # (B, T)
    # 1. Ratio. Other positions are masked before exp, so that not even a NaN there reaches value or gradient.
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0)  # (B, T)
    lengths = mask.sum(1)  # (B,)
    if ratio == "sequence":
        log_ratio = (log_ratio.sum(1) / lengths.clamp(min=1))[:, None].expand_as(log_ratio)
    w = log_ratio.exp()  # (B, T)
    # 2. Clipped loss of each token, with importance weights and KL penalty.
    gain = advantages if advantages.dim() == 2 else advantages[:, None]  # (B, T) or (B, 1)
    clipped = w.clamp(1 - clip_low, 1 + clip_high)  # (B, T)
    if objective == "cispo":
        token_loss = -clipped.detach() * gain * torch.where(mask, logprobs, 0.0)
    else:
        token_loss = -torch.minimum(w * gain, clipped * gain)
    if weights is not None:
        token_loss = token_loss * torch.where(mask, weights, 0.0)
    kl = torch.zeros_like(token_loss)
    if kl_coef:
        assert ref_logprobs is not None, "kl_coef needs ref_logprobs"
        kl = kl_penalty(torch.where(mask, logprobs, 0.0), torch.where(mask, ref_logprobs, 0.0))
        token_loss = token_loss + kl_coef * kl
    # 3. Mask and normalize.
    token_loss = torch.where(mask, token_loss, 0.0)
    if aggregation == "sequence":
        token_loss = token_loss / lengths.clamp(min=1)[:, None]
    loss = token_loss.sum() / (normalizer or max(count(loss_mask, aggregation), 1.0))
    with torch.no_grad():
        info = {
            "clipped_low": (mask & (w < 1 - clip_low) & ((gain < 0) | (objective == "cispo"))).sum(),
            "clipped_high": (mask & (w > 1 + clip_high) & ((gain > 0) | (objective == "cispo"))).sum(),
            "kl": torch.where(mask, kl, 0.0).sum(),
            "tokens": mask.sum(),
        }
    return loss, info


def count(loss_mask: torch.Tensor, aggregation: Aggregation, max_length: int | None = None) -> float:
    """Return the part of these rows in the denominator: number of model tokens, of rows with at least one model
    token, or of rows x max length."""
    if aggregation == "token":
        number = loss_mask.sum().item()
    elif aggregation == "sequence":
        number = loss_mask.bool().any(1).sum().item()
    else:
        number = loss_mask.shape[0] * (max_length or loss_mask.shape[1])
    return float(number)


def sequence_ratio(
    log_ratio: torch.Tensor, loss_mask: torch.Tensor, by: Literal["sum", "mean"] = "sum"
) -> torch.Tensor:
    """Compute exp of the sum, or of the mean, of log-ratios (B, T) over the model tokens of each response: (B,).

    `algorithm.sequence_mask` (Trust Region Masking, arXiv 2512.23075) multiplies the loss of response i by
    M_i = [lo <= ratio_i <= hi], with the ratio of learner and generator. The objective is a mean over all sampled
    responses, so the denominator still counts those with M_i = 0.
    """
    mask = loss_mask.bool()
    total = torch.where(mask, log_ratio, 0.0).sum(1)
    return (total / mask.sum(1).clamp(min=1) if by == "mean" else total).exp()


def kl_penalty(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """Compute Schulman's k3 estimator (GRPO, eq. 4), (B, T): >= 0, and unbiased on the policy's own samples."""
    log_ratio = ref_logprobs - logprobs
    return log_ratio.exp() - log_ratio - 1
