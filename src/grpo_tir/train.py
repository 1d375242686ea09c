"""The training loop of ToRL, in order.

    problems → rollouts (with the tool) → rewards → advantages → loss → step → checkpoint, metrics

Where this departs from the paper's own code, and why, is listed in docs/algorithm.md.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from grpo_tir.checkpoint.journal import Journal, digest
from grpo_tir.checkpoint.load import find_start, load_optimizer, load_trainer
from grpo_tir.checkpoint.save import Saver, make_writable
from grpo_tir.config import Config, check_for_training
from grpo_tir.data.load import read_all_problems
from grpo_tir.distributed.launcher import lost_contact
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.distributed.signals import Interrupted, StopRequest
from grpo_tir.distributed.watchdog import Watchdog
from grpo_tir.errors import CheckpointError, TrainingDiverged
from grpo_tir.evaluation.held_out import evaluate
from grpo_tir.learning.advantages import assign_advantages
from grpo_tir.learning.learner import Learner
from grpo_tir.learning.lora import add_adapters
from grpo_tir.monitor.alarms import find_alarms, grad_norm_spiked
from grpo_tir.monitor.console import Console
from grpo_tir.monitor.metrics import step_metrics, summarize
from grpo_tir.monitor.run_log import RunLog, describe_run, trajectory
from grpo_tir.monitor.utilization import MachineLimits
from grpo_tir.rollouts.collect import Collector, keep_fitting
from grpo_tir.rollouts.policy import Policy, load_policy, load_reference
from grpo_tir.rollouts.rewards import make_reward
from grpo_tir.tools.open import open_tool
from grpo_tir.types import RolloutGroup
from grpo_tir.utils.files import Writer
from grpo_tir.utils.recipe import save_config


class Trainer:
    """Everything that lives as long as the run. `run` is the algorithm; the rest serves it."""

    def __init__(self, config: Config, resume: bool = False) -> None:
        check_for_training(config)
        self.config = config
        if config.train.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
            torch.use_deterministic_algorithms(True)
        patience = max(30.0, 2 * config.train.watchdog_minutes)
        self.runtime = Runtime(config.model.precision, patience, trains=True)
        self.folder = Path(config.train.output_dir)
        self.console = Console(self.runtime.is_main)
        torch.manual_seed(config.train.seed)
        make_writable(self.folder)
        if self.runtime.world > 1:  # a launcher that starts one process instead of many does so silently
            self.console.log(f"{self.runtime.world} processes")
        source = find_start(self.folder, resume, self.console.log)
        if len(set(self.runtime.gather([source and source.name]))) > 1:
            raise CheckpointError(f"nodes see different checkpoints in {self.folder}: they must share this folder")
        self.stop = StopRequest(self.runtime, self.console.log)
        self.writer = Writer("log")
        self.watchdog = Watchdog(
            self.folder / "alive",
            self.runtime.rank,
            self.runtime.world,
            self.runtime.progress,
            config.train.watchdog_minutes,
        )
        self.tool = open_tool(config, self.console.log)
        try:
            self._load(source, resume)
        except BaseException:
            self.close()  # no container outlives a model that cannot be loaded
            raise

    def _load(self, source: Path | None, resume: bool) -> None:
        """Policy, learner and problems, at the start or where a checkpoint stands."""
        config = self.config
        train, self.held_out = read_all_problems(config, self.console.log)
        adapts = config.model.lora_rank > 0  # then the weights never change, and a checkpoint adds its adapters
        path = str(source) if source and not adapts else config.model.path
        self.policy: Policy = load_policy(config, path, self.runtime.device, self.runtime.full_weights)
        if adapts:
            add_adapters(self.policy.model, config.model, source)
        if self.policy.engine_refused:
            self.console.log(f"rollout.generator: `generate`, not `engine`: {self.policy.engine_refused}")
        self.learner = Learner(
            self.runtime, self.policy.model, config, load_reference(config, self.runtime.full_weights)
        )
        self.reward = make_reward(config.reward, config.rollout.max_completion_length)
        journal = Journal(self.folder / "journal", self.runtime.rank, digest(config), self.writer, resume)
        fitting = keep_fitting(train, config, self.policy, self.console.log)
        self.batches = Collector(
            config, self.runtime, self.policy, self.tool, self.reward, fitting, journal, self.stop, self.console
        )
        self.machine = MachineLimits(self.policy.model, self.runtime.bf16)
        self.saver = Saver(self.folder / "checkpoints", config, journal, self.console.log, self.runtime)
        self.step = 0
        self.saved: int | None = None
        self.line: dict[str, Any] | None = {} if self.evaluates else None  # metrics that are not written yet
        if source:
            self._restore(source)
        if self.runtime.is_main:
            if not resume:
                journal.clear()
            self.saver.tidy(self.step)
            self.run_log = RunLog(self.folder, config.train.report_to, self.step if source else -1, self.writer)
            save_config(config, self.folder / "config.yaml")
            (self.folder / "metadata.json").write_text(json.dumps(describe_run(config, self.tool), indent=1))
        self.runtime.barrier()

    def run(self) -> int:
        """Train to the last step, or to a signal. Returns the exit code."""
        config = self.config
        with self.stop, self.watchdog:
            self.console.start(config.train.steps, self.step)
            try:
                self.finish_step()  # the evaluation before training, or one that a signal has cut short
                while self.step < config.train.steps:
                    started = time.perf_counter()
                    groups = self.batches.collect(self.step + 1)
                    assign_advantages(groups, config.algorithm)
                    sampled = time.perf_counter()
                    learned = self.learn(groups)
                    self.step += 1
                    self.measure(groups, learned, sampled - started, time.perf_counter() - sampled)
                    self.finish_step()
            except Interrupted:  # a signal; the batch or the evaluation at hand never happened
                pass
            self.console.finish()
            if self.saved != self.step:
                self.save()
            self.saver.flush()
            self.writer.flush()
            return self.stop.exit_code

    def learn(self, groups: list[RolloutGroup]) -> dict[str, float]:
        """One update; the batch that ends the run is written down for `grpo-tir replay`, too."""
        step = self.step + 1
        try:
            return self.learner.update(groups, self.step, self.folder / "dumps" / f"step_{step:06d}")
        except TrainingDiverged:  # on all ranks together
            self.write_rollouts(groups, step)
            raise

    def write_rollouts(self, groups: list[RolloutGroup], step: int) -> None:
        """Whole trajectories of all ranks, in one file."""
        found = self.runtime.gather([trajectory(rollout, step) for group in groups for rollout in group.rollouts])
        if self.runtime.is_main:
            self.run_log.rollouts(step, found)

    def measure(
        self, groups: list[RolloutGroup], learned: dict[str, Any], sampling: float, learning: float
    ) -> None:
        """Rewards, trajectories and metrics of the step that has just been taken; seconds of its two halves."""
        config = self.config
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        summaries = self.runtime.gather([summarize(rollout, config.tool.max_tool_calls) for rollout in rollouts])
        every = config.train.rollouts_every or config.train.steps
        keep = (self.step - 1) % every == 0 or (config.train.rollouts_every and self.step == config.train.steps)
        wrong = self.runtime.is_main and (
            learned["skipped_updates"] or grad_norm_spiked([*self.run_log.history, learned])
        )
        if self.runtime.max([float(bool(keep or wrong))])[0]:
            self.write_rollouts(groups, self.step)  # what went wrong can be replayed
        idle, forwards = self.runtime.sum([self.batches.idle, self.batches.forwards])
        self.line = {}  # on every rank: not yet written
        if not self.runtime.is_main:
            return
        tokens = sum(row["length"] for row in summaries)
        self.line = {
            **step_metrics(summaries),
            **learned,
            "time/step": sampling + learning,
            "time/rollout": sampling,
            "time/learn": learning,
            "time/tool_idle": idle / self.runtime.world,
            "time/rollout_tokens_per_second": tokens / sampling,
            "time/learn_tokens_per_second": tokens / learning,
            **self.machine.shares(
                summaries,
                sampling,
                learning,
                forwards / self.runtime.world,
                config.algorithm.epochs,
                self.runtime.world,
            ),
        }
        self.run_log.rewards(self.step, summaries, len(self.batches.problems.problems))
        if config.train.sample_every and self.step % config.train.sample_every == 0:
            self.console.trajectory(rollouts[0])

    def finish_step(self) -> None:
        """Evaluation, metrics and checkpoint of the step that has just been taken, where they are due.

        Raises:
            Interrupted: a signal. An evaluation that it cut short is made up for on `--resume`.
        """
        if self.line is not None:
            found = self.evaluate() if self.evaluates else {}
            if self.runtime.is_main:
                self._write_line({**self.line, **found})
            self.line = None
        self.saver.check()
        self.stop.agree()
        every = self.config.train.save_every
        if every and self.step and self.step % every == 0 and self.saved != self.step:
            self.save()

    @property
    def evaluates(self) -> bool:
        """Whether the held-out problems are due: before the first step, every so often, and after the last."""
        every = self.config.train.eval_every
        return bool(every and self.held_out) and (self.step % every == 0 or self.step == self.config.train.steps)

    def evaluate(self) -> dict[str, Any]:
        """Greedy accuracy on the held-out problems, with the weights as they are."""
        return evaluate(
            self.policy, self.tool, self.reward, self.held_out, self.config, self.runtime, self.stop
        ).metrics()

    def state(self) -> dict[str, Any]:
        """Where the run stands, apart from weights and optimizer. Draws are keyed: no generator is saved."""
        return {
            "step": self.step,
            **self.batches.state_dict(),
            "seed": self.config.train.seed,
            "skipped": self.learner.skipped,
            "line": self.line,
        }

    def save(self) -> None:
        """A checkpoint of the step that has just been taken."""
        if self.runtime.is_main:
            self.run_log.sync()
        model, tokenizer = self.policy.model, self.policy.tokenizer
        self.saver.save(self.step, model, tokenizer, self.learner.optimizer, self.state())
        self.saved = self.step
        self.runtime.barrier()

    def close(self) -> None:
        """Release the executor and the threads; a checkpoint that is being written is written to its end."""
        for part in ("batches", "saver", "writer", "tool"):
            if (held := getattr(self, part, None)) is not None:
                held.close()
        self.runtime.close()

    def _write_line(self, metrics: dict[str, Any]) -> None:
        self.run_log.metrics(self.step, metrics)
        if self.step:
            self.console.step(self.step, self.config.train.steps, metrics)
            self.console.alarms(find_alarms(self.run_log.history, self.config))
        else:
            self.console.log(f"before training: held-out accuracy {metrics.get('eval/accuracy')} (greedy)")

    def _restore(self, source: Path) -> None:
        state = load_trainer(source)
        if state["seed"] != self.config.train.seed:
            raise CheckpointError(f"the checkpoint is of a run with seed {state['seed']}: set train.seed to it")
        load_optimizer(source, self.policy.model, self.learner.optimizer, self.runtime)
        self.learner.skipped = state["skipped"]
        self.batches.load_state_dict(state)
        self.step = self.saved = state["step"]
        self.line = state["line"]
        self.console.log(f"resuming after step {self.step}")


def train(config: Config, resume: bool = False) -> int:
    """Run a recipe. Returns the exit code: 0, or 130/143 after a signal."""
    trainer = Trainer(config, resume)
    try:
        return trainer.run()
    except Exception as error:
        if trainer.stop.signal and lost_contact(error):  # the launcher ends all, because of another rank
            return 128 + trainer.stop.signal
        raise
    finally:
        trainer.close()
