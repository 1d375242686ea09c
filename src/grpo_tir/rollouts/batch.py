"""Follow the rollouts of one batch: grade each one when it ends, and tell when enough groups are whole."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future

from grpo_tir.distributed.runtime import Runtime
from grpo_tir.errors import ExecutorOutage, GraderOutage
from grpo_tir.rollouts.rewards import RewardFunction
from grpo_tir.types import Reward, Rollout, RolloutGroup


class Batch:
    """Follow the rollouts of this rank's groups that have not ended. The batch ends when a `share` of the groups
    is whole (`rollout.carry_over`). `reward` grades in the threads of `graders`."""

    def __init__(
        self, groups: Sequence[RolloutGroup], share: float, reward: RewardFunction, graders: Executor
    ) -> None:
        self.rollouts = [rollout for group in groups for rollout in group.rollouts if not rollout.ended]
        self.sampled = 0
        """Number of rollouts that were sampled; the others were in the journal."""
        self.reward, self.graders = reward, graders
        self.needed = math.ceil(share * len(groups) - 1e-9)  # .7 of 10 is 7
        self.left = Counter(rollout.group for rollout in self.rollouts)
        """Number of rollouts of each group that have not ended."""
        self.grading: dict[int, Future[Reward | None]] = {}

    def waves(self, size: int) -> list[list[Rollout]]:
        """Split the rollouts into waves of `size`; 0 means one wave."""
        size = size or max(1, len(self.rollouts))
        return [self.rollouts[start : start + size] for start in range(0, len(self.rollouts), size)]

    @property
    def finished(self) -> int:
        """Number of rollouts that have ended."""
        return len(self.rollouts) - self.left.total()

    def enough(self) -> bool:
        """True if so many groups are whole that the batch ends."""
        return sum(not left for left in self.left.values()) >= self.needed

    def finish(self, rollout: Rollout) -> None:
        """Count a rollout that has ended, and grade it in another thread."""
        self.left[rollout.group] -= 1
        if rollout.valid:
            self.grading[id(rollout)] = self.graders.submit(self.reward, rollout.problem, rollout)

    def assign_rewards(self, check: Callable[[], None]) -> list[Rollout]:
        """Wait for the grades, and write `reward` and `valid` of the rollouts that have ended. Returns these.
        `check` is called before each; it may raise to abandon."""
        ended = [rollout for rollout in self.rollouts if rollout.ended]
        for rollout in ended:
            check()
            rollout.reward = self.grading[id(rollout)].result() if rollout.valid else None
            rollout.valid = rollout.reward is not None
        return ended


def check_outage(rollouts: Sequence[Rollout], runtime: Runtime, limit: float) -> None:
    """Raise an outage if more than a share `limit` of all ranks' rollouts were lost or could not be graded."""
    lost = sum(r.finish_reason == "aborted" for r in rollouts)
    unjudged = sum(not r.valid for r in rollouts) - lost
    lost, unjudged, number = map(int, runtime.sum([lost, unjudged, len(rollouts)]))
    if lost > limit * number:
        raise ExecutorOutage(
            f"{lost} of {number} rollouts were lost to the executor (executor.max_outage {limit}): "
            "see `grpo-tir sandbox status`, then continue with --resume"
        )
    if unjudged > limit * number:
        raise GraderOutage(f"{unjudged} of {number} rollouts could not be judged: check their gold answers")
