"""Draw tokens with keyed random numbers: a draw does not depend on which rows share the batch.

    u = uniform(seed, group, sample, position)         counter-based: no generator state to save or to restore
    token = smallest v with  cumsum(softmax(logits / temperature))[v] > u

A rollout is therefore the same alone, in a batch of 64, and after a resume, unless its logits differ by rounding.

Shapes: B rows, V vocabulary.
"""

from dataclasses import dataclass

import torch

_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Sampling:
    """Sampling distribution. `temperature` 0 is greedy; `top_p` 1, `top_k` 0 and `min_p` 0 are off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0


def row_key(seed: int, group: int, sample: int) -> int:
    """Return the 64-bit key of one rollout of one run."""
    key = 0
    for part in (seed, group, sample):
        key = _mix_int((key + part + 0x9E3779B97F4A7C15) & _MASK)
    return key - (1 << 64) if key >> 63 else key  # as a signed int64


def uniforms(keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Map `keys` and `positions`, (B,) int64, to uniform draws in [0, 1), (B,) float64."""
    bits = _mix(keys + positions * -7046029254386353131)  # 0x9E3779B97F4A7C15, splitmix64's increment
    return _shift(bits, 11).to(torch.float64) * 2.0**-53


def draw(logits: torch.Tensor, u: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one token for each row by inverse CDF.

    Args:
        logits: (B, V), any float type.
        u: (B,) float64 in [0, 1); ignored when greedy.

    Returns:
        ids (B,) int64, and their log-probs (B,) float32 under the distribution that was sampled from. Greedy draws
        report log-probs of the untruncated distribution at temperature 1.
    """
    logits = logits.float()
    if sampling.temperature == 0:
        ids = logits.argmax(-1)
        return ids, logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    logits = truncate(logits / sampling.temperature, sampling)
    probs = (logits - logits.amax(-1, keepdim=True)).exp()  # (B, V), not normalised
    cdf = running_sum(probs.double())  # (B, V) in float64: float32 loses the tail at V = 152k
    ids = _first_above(cdf, u * cdf[:, -1])
    return ids, logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]


def running_sum(x: torch.Tensor) -> torch.Tensor:
    """Compute `x.cumsum(-1)`, (…, N). CUDA's cumsum adds in a different order in every run. torch therefore raises
    an error for it under `train.deterministic`, and `doubling_sum` is used."""
    if x.device.type == "cpu" or not torch.are_deterministic_algorithms_enabled():
        return x.cumsum(-1)
    return doubling_sum(x)


def doubling_sum(x: torch.Tensor) -> torch.Tensor:
    """Compute running sums in log2(N) rounds: after round k, each entry is the sum of the last 2^k entries."""
    width = 1
    while width < x.shape[-1]:
        x = x + torch.nn.functional.pad(x[..., :-width], (width, 0))
        width *= 2
    return x


def _first_above(cdf: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the index of the first entry > target: (B, N), (B,) to (B,). If rounding makes the target equal to
    the total, return the last token with a probability above 0."""
    found = torch.searchsorted(cdf, target[:, None].contiguous(), right=True)
    last = torch.searchsorted(cdf, cdf[:, -1:].contiguous())
    # without the clamp, the index of NaN logits would crash a GPU process; the learner reports NaN
    return torch.minimum(found, last)[:, 0].clamp(max=cdf.shape[-1] - 1)


def truncate(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Set logits (B, V) to -inf where top-k, top-p or min-p (in this order) leave a token out."""
    if sampling.top_k > 0:
        kth = logits.topk(min(sampling.top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        before = running_sum(ordered.softmax(-1)) - ordered.softmax(-1)  # sum over the tokens ahead of each
        drop = (before >= sampling.top_p).scatter(-1, order, before >= sampling.top_p)
        logits = logits.masked_fill(drop, -torch.inf)
    if sampling.min_p > 0:
        probs = logits.softmax(-1)
        logits = logits.masked_fill(probs < sampling.min_p * probs.amax(-1, keepdim=True), -torch.inf)
    return logits


def _mix_int(x: int) -> int:
    """Apply splitmix64's finaliser to a Python integer."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """Apply splitmix64's finaliser to int64 tensors, whose products wrap around."""
    x = (x ^ _shift(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ _shift(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ _shift(x, 31)


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift int64 right logically; torch's own shift is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
