"""Custom data set: a function that yields problems.

grpo-tir train RECIPE --data.train recipes/custom/dataset.py:primes
"""

from collections.abc import Iterator

from grpo_tir.types import Problem


def primes() -> Iterator[Problem]:
    """Yield "How many primes are less than n?" for about a thousand n."""
    limit = 10_000
    sieve = [False, False] + [True] * (limit - 2)
    for number in range(2, limit):
        if sieve[number]:
            sieve[number * number :: number] = [False] * len(sieve[number * number :: number])
    for n in range(10, limit, 10):
        yield Problem(f"primes-{n}", f"How many primes are less than {n}?", str(sum(sieve[:n])), "primes")
