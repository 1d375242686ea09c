"""Deal the samples of a rollout batch over mini-batches and ranks.

rank 0   9 5 4 │ 9 4        tokens of its rows, before │ after
rank 1   6     │ 6 5        the row of 5 is a guest of rank 1, and away from rank 0
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from grpo_tir.distributed.runtime import Runtime, balance
from grpo_tir.learning.batching import TrainingSample, to_row
from grpo_tir.types import Rollout, RolloutGroup


def split(groups: Sequence[RolloutGroup], parts: int, step: int, runtime: Runtime) -> list[list[TrainingSample]]:
    """Split this rank's groups into mini-batches by their position in the batch of all ranks. The mini-batches are
    then the same for any number of ranks. `step` is the training step, from 1."""
    numbers = [group.rollouts[0].group for group in groups]
    position = {number: i for i, number in enumerate(sorted(runtime.gather(numbers)))}
    batches: list[list[TrainingSample]] = [[] for _ in range(parts)]
    for group, number in zip(groups, numbers, strict=True):
        rows = [to_row(rollout, step) for rollout in group.rollouts if rollout.trained]
        batches[position[number] % parts] += rows
    return batches


class Levelling:
    """Move rows between the ranks, so that all have about the same number of tokens and finish together. Sampling
    was dealt by prompt, because lengths were unknown. The gradient is that of all ranks."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.guests: list[Rollout] = []
        """Rollouts that this rank trains for others, without their segments."""
        self.away: dict[tuple[int, int], Rollout] = {}
        """Rollouts that other ranks train for this one, by group and sample."""

    def level(self, samples: list[TrainingSample]) -> list[TrainingSample]:
        """Return the rows of a mini-batch that this rank trains. All ranks must call it together."""
        rank = self.runtime.rank
        moves = balance(self.runtime.gather([[len(sample.token_ids) for sample in samples]]))
        sent = []
        for (source, i), target in moves.items():
            if source == rank:
                rollout = samples[i].rollout
                assert rollout, "idle rows come later"
                self.away[rollout.group, rollout.sample] = rollout
                sent.append((target, replace(samples[i], rollout=replace(rollout, segments=[], calls=[]))))
        arrived = [sample for target, sample in self.runtime.gather(sent) if target == rank]
        self.guests += [sample.rollout for sample in arrived if sample.rollout]
        return [sample for i, sample in enumerate(samples) if (rank, i) not in moves] + arrived

    def return_logprobs(self) -> None:
        """Give the learner's log-probs of moved rows to the ranks that sampled them, for the run's log."""
        found = [
            (guest.group, guest.sample, torch.as_tensor(guest.old_logprobs).tolist())
            for guest in self.guests
            if guest.old_logprobs is not None
        ]
        for group, sample, logprobs in self.runtime.gather(found):
            if (group, sample) in self.away:
                self.away[group, sample].old_logprobs = logprobs
