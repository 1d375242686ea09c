"""Collect one rollout batch: draw problems, sample responses with the tool, grade and journal them.

    problems ──► groups ──► this rank's share ──► waves ──► rollout loop ──► grading ──► groups with rewards
                                                   ▲ └──► journal
                                                   └───── rollouts that an interrupted attempt had finished

Rows of a wave are decoded together until all have ended. A batch is one wave, except with `train.deterministic`
and `rollout.max_rows`: then every wave has that many rows and ends before the next one begins. Responses are
graded in other threads while the rest of the batch decodes.

With `rollout.carry_over`, a rank ends its wave once that share of its groups is whole. The others are carried
over: they are dealt to the ranks anew, with fewer new groups, and continued with the weights of the next step.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from grpo_tir.checkpoint.journal import Journal, from_line, to_line
from grpo_tir.config import Config
from grpo_tir.data.problems import ProblemSampler
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.distributed.signals import StopRequest
from grpo_tir.learning.advantages import is_flat
from grpo_tir.learning.turns import resample_on_correct
from grpo_tir.monitor.console import Console
from grpo_tir.rollouts.batch import Batch, check_outage
from grpo_tir.rollouts.policy import Policy
from grpo_tir.rollouts.rewards import RewardFunction
from grpo_tir.rollouts.sample import cost, make_groups, sample_responses
from grpo_tir.tools.open import check_resumable
from grpo_tir.tools.protocol import Tool
from grpo_tir.types import Problem, Rollout, RolloutGroup


class Collector:
    """Draw problems in the order of the run and turn them into graded groups. All ranks call it together."""

    def __init__(
        self,
        config: Config,
        runtime: Runtime,
        policy: Policy,
        tool: Tool | None,
        reward: RewardFunction,
        problems: list[Problem],
        journal: Journal,
        stop: StopRequest,
        console: Console,
    ) -> None:
        self.config, self.runtime, self.policy = config, runtime, policy
        self.tool, self.reward, self.journal = tool, reward, journal
        self.stop, self.console = stop, console
        check_resumable(tool, config)
        self.problems = ProblemSampler(problems, config.train.seed, config.data.shuffle)
        self.step, self.next_group = 0, 0
        self.carried: list[RolloutGroup] = []
        """Groups that are not whole: between batches those of all ranks, ordered by their numbers."""
        self.graders = ThreadPoolExecutor(max_workers=4, thread_name_prefix="reward")
        self.current = Batch([], 0.0, reward, self.graders)
        self.idle = 0.0
        """Seconds of the current batch in which all rows waited for their tool."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the problems, the number of groups so far, and the carried rollouts."""
        carried = [[to_line(rollout) for rollout in group.rollouts] for group in self.carried]
        return {"next_group": self.next_group, "sampler": self.problems.state_dict(), "carried": carried}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved position."""
        self.next_group = state["next_group"]
        self.problems.load_state_dict(state["sampler"])
        groups = [[from_line(line) for line in lines] for lines in state.get("carried", [])]
        self.carried = [RolloutGroup(rollouts[0].problem, rollouts) for rollouts in groups]

    @contextmanager
    def batch(self, step: int) -> Iterator[None]:
        """Open the rollout batch of training step `step` (from 1).

        If the batch is abandoned, the sampler returns to its state before it. The journal keeps what was sampled.
        """
        before, self.step = self.state_dict(), step
        self.idle = 0.0
        self.journal.begin(step)
        try:
            yield
        except BaseException:
            self.load_state_dict(before)
            raise

    def sample_rollouts(self, number: int | None = None) -> list[RolloutGroup]:
        """Sample responses to the next `number` problems (default: `rollout.prompts_per_step`, less those carried
        over).

        Each response is graded in another thread as soon as it ends. `assign_rewards` collects the results.

        Returns:
            This rank's groups, if they are whole; the others are carried over.

        Raises:
            Interrupted: a rank was asked to stop.
            ExecutorOutage: the executor lost so many calls that it gave up.
        """
        settings = self.config.rollout
        number = max(0, settings.prompts_per_step - len(self.carried)) if number is None else number
        # 1. Draw problems. All ranks draw the same ones, and each rank takes its share.
        policy, samples = self.policy, self.config.sampled_per_prompt
        drawn = self.problems.next(number)
        groups = make_groups(drawn, policy.render, policy.tokenizer, samples, self.next_group)
        self.next_group += number
        mine = self.runtime.share(self.carried + groups, cost)
        self.current = batch = Batch(mine, settings.carry_over or 1.0, self.reward, self.graders)
        with self.stop.abandonable(), policy.gathered(self.runtime, self.config):
            for wave in batch.waves(settings.max_rows if self.config.train.deterministic else 0):
                # 2. Restore from the journal what an interrupted attempt had finished.
                missing = self.journal.recall(wave, whole=self.config.train.deterministic)
                for rollout in wave:
                    if rollout.ended:
                        batch.finish(rollout)
                # 3. Sample the rest.
                if not batch.enough():
                    self._decode(missing)
                    batch.sampled += len(missing)
        self.carried = [group for group in mine if not group.whole]
        return [group for group in mine if group.whole]

    def assign_rewards(self, groups: list[RolloutGroup]) -> None:
        """Wait for the grading of the rollouts that have just ended, and write their `reward` and `valid`. Gather
        the carried groups of all ranks. With `algorithm.resample_on_correct`, each of `groups` then keeps G of its
        2 G rollouts.

        Raises:
            Interrupted: a rank was asked to stop.
            ExecutorOutage, GraderOutage: more rollouts were lost than `executor.max_outage` allows.
        """
        batch = self.current
        with self.stop.abandonable():
            ended = batch.assign_rewards(self.stop.check)
        self.journal.end_batch(self.step, batch.sampled, len(batch.rollouts), self.runtime, self.console.log)
        check_outage(ended, self.runtime, self.config.executor.max_outage)
        if self.config.rollout.carry_over:
            carried = self.runtime.gather(self.carried)
            self.carried = sorted(carried, key=lambda group: group.rollouts[0].group)
        if self.config.algorithm.resample_on_correct:
            for group in groups:
                seed = f"{self.config.train.seed}/{group.rollouts[0].group}"
                group.rollouts = resample_on_correct(group.rollouts, self.config.rollout.samples_per_prompt, seed)

    def replace_flat_groups(self, groups: list[RolloutGroup]) -> list[RolloutGroup]:
        """Replace groups of equal rewards by groups of further problems (dynamic sampling; DAPO, section 3.2).

        `algorithm.dynamic_sampling` bounds the number of batches sampled; 0 returns the groups as they are. If the
        batch is still short after the last attempt, flat groups fill it up: a batch never gets smaller.
        """
        attempts, wanted = self.config.algorithm.dynamic_sampling, self.config.rollout.prompts_per_step
        if not attempts:
            return groups
        for attempt in range(1, attempts + 1):
            kept = [group for group in groups if not is_flat(group.rewards)]
            missing = wanted - int(self.runtime.sum([len(kept)])[0])
            if missing <= 0:
                return kept
            if attempt < attempts:
                more = self.sample_rollouts(missing)
                self.assign_rewards(more)
                groups = groups + more
        flat_groups = [group for group in groups if is_flat(group.rewards)]
        chosen = self.runtime.gather([group.rollouts[0].group for group in flat_groups])[:missing]
        return kept + [group for group in flat_groups if group.rollouts[0].group in chosen]

    def close(self) -> None:
        """End the grading threads."""
        self.graders.shutdown(wait=False, cancel_futures=True)

    def _decode(self, rollouts: list[Rollout]) -> None:
        """Sample rollouts to their end with a new generator, so that a wave does not depend on earlier waves."""
        self.idle += sample_responses(
            rollouts,
            self.policy,
            self.tool,
            self.config,
            self.runtime,
            fixed_waves=self.config.train.deterministic,
            run_tool=self.journal.run,
            on_finish=self._finish,
            check=self._between_tokens,
            enough=self.current.enough,
            version=self.step if self.config.rollout.carry_over or self.carried else 0,
        )
        for rollout in rollouts:
            if not rollout.ended:
                self.journal.record(rollout)

    def _finish(self, rollout: Rollout) -> None:
        self.journal.record(rollout)
        self.current.finish(rollout)

    def _between_tokens(self, finished: int, waiting: int) -> None:
        self.console.progress(self.current.finished, len(self.current.rollouts), waiting)
        self.stop.check()
