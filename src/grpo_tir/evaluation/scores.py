"""Compute avg@k, pass@k, maj@k, their intervals, and differences between models from graded samples.

    avg@n   mean over problems of the share of right samples (n = 1: accuracy)
    pass@k  mean over problems of 1 - C(n - right, k) / C(n, k): unbiased for any k <= n (arXiv 2107.03374, eq. 1)
    maj@n   share of problems whose most frequent answer is right; a tie counts by the share of right ones in it

Intervals are 95% percentile bootstraps over problems. Differences between two models are taken problem by problem:
both find the same problems hard, and pairing removes this shared variance.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
SEED = 0
Same = Callable[[str, str], bool]
Interval = tuple[float, float]


def pass_at_k(n: int, right: int, k: int) -> float:
    """Return the probability that at least one of k samples, drawn from n without replacement, is right."""
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def majority(answers: Sequence[tuple[str | None, bool]], same: Same) -> float:
    """Return 1 if the most frequent answer is right, 0 if wrong; on a tie, the share of right answers in it.

    Args:
        answers: answer and grade of each sample of one problem. A sample without an answer does not vote.
        same: tells whether two wrong answers are equal. All right answers count as equal.
    """
    right = sum(verdict for answer, verdict in answers if answer is not None)
    clusters: list[list[str]] = []
    for answer, verdict in answers:
        if verdict or answer is None:
            continue
        for cluster in clusters:
            if answer == cluster[0] or same(answer, cluster[0]):
                cluster.append(answer)
                break
        else:
            clusters.append([answer])
    sizes = [len(cluster) for cluster in clusters]
    top = max([right, *sizes])
    return 1.0 / (1 + sizes.count(top)) if right == top and top else 0.0


def bootstrap(*parts: Sequence[float]) -> Interval:
    """Return the 95% interval of a mean, of several benchmarks that of the unweighted mean. Each is resampled by
    itself. If all scores of each are 0 or all are 1, resampling has no spread; then return the mean of their exact
    binomial bounds (Clopper-Pearson)."""
    if all(score in (0, 1) and score == scores[0] for scores in parts for score in scores):
        bounds = [((1 - LEVEL) / 2) ** (1 / len(scores)) for scores in parts]
        ends = [(bound, 1.0) if scores[0] else (0.0, 1 - bound) for scores, bound in zip(parts, bounds)]
        low, high = np.mean(ends, axis=0)
        return float(low), float(high)
    return _interval(np.mean([_means(scores, stream) for stream, scores in enumerate(parts)], axis=0))


def _means(scores: Sequence[float], stream: int) -> Any:
    """Return the means of the resamples, (RESAMPLES,). Works in pieces to bound memory."""
    values, rng = np.asarray(scores, dtype=float), np.random.default_rng([SEED, stream])
    size = max(1, (1 << 22) // len(values))
    pieces = [
        values[rng.integers(len(values), size=(min(size, RESAMPLES - start), len(values)))].mean(axis=1)
        for start in range(0, RESAMPLES, size)
    ]
    return np.concatenate(pieces)


def _interval(means: Any) -> Interval:
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def difference(*parts: tuple[Sequence[float], Sequence[float]]) -> dict[str, Any]:
    """Compare first minus second problem by problem: mean, interval, problems won and lost, and the exact
    two-sided sign test over the problems that differ. Of several benchmarks the unweighted mean is compared, and
    each is resampled by itself."""
    gaps = [[a - b for a, b in zip(first, second, strict=True)] for first, second in parts]
    won, lost = (sum(sign * gap > 0 for some in gaps for gap in some) for sign in (1, -1))
    low, high = _interval(np.mean([_means(some, stream) for stream, some in enumerate(gaps)], axis=0))
    mean = float(np.mean([np.mean(some) for some in gaps]))
    return {"mean": mean, "low": low, "high": high, "won": won, "lost": lost, "p": sign_test(won, lost)}


def sign_test(won: int, lost: int) -> float:
    """Return the two-sided p-value of this split if both outcomes are equally likely."""
    n, k = won + lost, max(won, lost)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k, n + 1)) / 2**n)
